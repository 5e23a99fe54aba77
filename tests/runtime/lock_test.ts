import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { PalisadeError } from "../../core/errors.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const host = (await currentRuntime()).host!;
const folder = await mkdtemp(join(tmpdir(), "palisade-lock-"));

const isLocked = (error: unknown) =>
  error instanceof PalisadeError && error.code === "file.locked" && error.kind === "resources";

Deno.test("Host.lock() has one holder at a time, says who it is, and leaves nothing behind", async () => {
  const path = join(folder, "one.jsonl");
  const attempts = await Promise.allSettled(Array.from({ length: 8 }, () => host.lock(path)));
  const won = attempts.filter((each) => each.status === "fulfilled");
  assert.equal(won.length, 1);
  for (const each of attempts) if (each.status === "rejected") assert.ok(isLocked(each.reason), `${each.reason}`);
  await assert.rejects(host.lock(path), new RegExp(`one.jsonl is being written by process ${Deno.pid}:`));
  await won[0].value[Symbol.asyncDispose]();
  await (await host.lock(path))[Symbol.asyncDispose]();
  assert.deepEqual((await readdir(folder)).filter((name) => name.startsWith("one")), []);
});

Deno.test("Host.lock() respects another process, and takes over once it was killed", async () => {
  const path = join(folder, "other.jsonl");
  const module = new URL("../../runtime/node_lock.ts", import.meta.url).href;
  const script = join(folder, "holder.ts");
  await writeFile(
    script,
    `const { lock } = await import(${JSON.stringify(module)});
     await lock(${JSON.stringify(path)});
     console.log("held");
     setInterval(() => {}, 1000);`,
  );
  const child = spawn(Deno.execPath(), ["run", "-A", "--no-check", script], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    await once(child.stdout, "data");
    await assert.rejects(host.lock(path), isLocked);
  } finally {
    child.kill("SIGKILL");
    await once(child, "exit");
  }
  const attempts = await Promise.allSettled(Array.from({ length: 4 }, () => host.lock(path)));
  const won = attempts.filter((each) => each.status === "fulfilled");
  assert.equal(won.length, 1, "one of several takes over");
  await won[0].value[Symbol.asyncDispose]();
  assert.deepEqual((await readdir(folder)).filter((name) => name.startsWith("other")), []);
});

Deno.test("Host.lock() takes over what a dead process left, and nothing of another machine", async () => {
  const path = join(folder, "left.jsonl"), lock = `${path}.lock`;
  const left = (holder: unknown) => writeFile(lock, typeof holder === "string" ? holder : JSON.stringify(holder));
  const here = { host: hostname(), pid: Deno.pid, token: "of an earlier process with our number" };
  for (
    const dead of ["", '{"host":', "{}", "[]", here, { ...here, token: "../../escape" }, {
      ...here,
      pid: 1,
      started: "a day before it began",
    }]
  ) {
    await left(dead);
    await (await host.lock(path))[Symbol.asyncDispose]();
  }
  await left({ ...here, host: "elsewhere.example" });
  await assert.rejects(host.lock(path), /on elsewhere\.example: .*; remove .*left\.jsonl\.lock if/);
});

Deno.test("Host.lock() names the file whose folder is missing", async () => {
  const path = join(folder, "no", "such.jsonl");
  await assert.rejects(host.lock(path), (error) => error instanceof PalisadeError && error.code === "file.no-folder");
});
