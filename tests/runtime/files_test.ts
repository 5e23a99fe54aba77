import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import { fileError } from "../../runtime/node_files.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const runtime = await currentRuntime();

async function withFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "palisade-runtime-" });
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function refusal(promise: Promise<unknown>): Promise<PalisadeError> {
  try {
    await promise;
  } catch (error) {
    assert(error instanceof PalisadeError, String(error));
    return error;
  }
  assert.fail("was not refused");
}

Deno.test("openFile() reads exact ranges and refuses others", () =>
  withFolder(async (folder) => {
    const path = `${folder}/ten`;
    await Deno.writeFile(path, Uint8Array.from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
    const source = await runtime.openFile(path);
    try {
      assert.deepEqual([source.name, source.size], [path, 10]);
      assert.deepEqual(await source.read(3, 4), Uint8Array.from([3, 4, 5, 6]));
      assert.deepEqual(await source.read(0, 10), Uint8Array.from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
      assert.deepEqual(await source.read(10, 0), new Uint8Array(0));
      for (const [offset, length] of [[-1, 1], [0, -1], [9, 2], [11, 0], [0.5, 1], [0, NaN], [2 ** 53, 1]]) {
        await assert.rejects(source.read(offset, length), RangeError, `${offset}, ${length}`);
      }
      await Deno.truncate(path, 5);
      const error = await refusal(source.read(3, 4));
      assert.deepEqual([error.kind, error.code, error.where], ["input", "file.changed", path]);
    } finally {
      await source.close();
    }
  }));

Deno.test("openFile() and readText() say what is wrong with a path", () =>
  withFolder(async (folder) => {
    await Deno.writeTextFile(`${folder}/file`, "x");
    const cases: [string, string][] = [
      [`${folder}/nothing`, "file.not-found"],
      [`${folder}/file/below`, "file.not-found"],
      [folder, "file.is-folder"],
    ];
    for (const [path, code] of cases) {
      for (const use of [runtime.openFile, runtime.readText]) {
        const error = await refusal(use(path));
        assert.deepEqual([error.kind, error.code, error.where], ["input", code, path]);
        assert.match(error.message, /^Can't open /);
      }
    }
    assert.equal((await refusal(runtime.openFile("/dev/null"))).code, "file.unreadable");
  }));

Deno.test("fileError() gives every failed system call a meaning", () => {
  const cases: [string, string, string][] = [
    ["ENOENT", "input", "file.not-found"],
    ["EISDIR", "input", "file.is-folder"],
    ["EACCES", "input", "file.no-permission"],
    ["EPERM", "input", "file.no-permission"],
    ["ENOSPC", "resources", "file.disk-full"],
    ["EDQUOT", "resources", "file.disk-full"],
    ["EROFS", "resources", "file.read-only"],
    ["EMFILE", "resources", "file.too-many-open"],
    ["EIO", "input", "file.unreadable"],
  ];
  for (const [name, kind, code] of cases) {
    const error = fileError(Object.assign(new Error("failed"), { code: name }), "some/path");
    assert.deepEqual([error.kind, error.code, error.where], [kind, code, "some/path"], name);
  }
});

Deno.test("create() and makeFolder() say what keeps a file from being made", () =>
  withFolder(async (folder) => {
    const host = runtime.host!, file = `${folder}/file`;
    await Deno.writeTextFile(file, "x");
    const cases: [() => Promise<unknown>, string, string][] = [
      [
        () => host.create(`${folder}/no/x`),
        "file.no-folder",
        `create ${folder}/no/x: the folder ${folder}/no does not exist`,
      ],
      [() => host.create(`${file}/x`), "file.no-folder", `create ${file}/x: ${file} is not a folder`],
      [
        () => host.create(`${folder}/no/x.part`, { named: `${folder}/no/x` }),
        "file.no-folder",
        `create ${folder}/no/x: `,
      ],
      [() => host.create(folder), "file.is-folder", `create ${folder}: `],
      [() => host.create(""), "file.not-found", "create a file: an empty path names none"],
      [() => host.makeFolder(`${file}/models`), "file.no-folder", `${file} is not a folder`],
      [() => host.makeFolder(file), "file.no-folder", `${file} is not a folder`],
      [() => runtime.readText(`${file}/x`), "file.not-found", `open ${file}/x: ${file} is not a folder`],
      [() => runtime.readText(""), "file.not-found", "open a file: an empty path names none"],
    ];
    if (Deno.build.os === "linux") {
      cases.push([() => host.makeFolder("/proc/x/models"), "file.no-folder", "create /proc/x: "]);
    }
    for (const [use, code, message] of cases) {
      const error = await refusal(use());
      assert.equal(error.code, code, message);
      assert.ok(error.message.includes(message), error.message);
    }
    await host.makeFolder(`${folder}/a/b`);
    await host.makeFolder(`${folder}/a/b`);
    assert.equal((await host.info(`${folder}/a/b`))?.kind, "folder");
  }));

Deno.test("readText() drops a byte order mark and refuses bytes that are not UTF-8 by their offset", () =>
  withFolder(async (folder) => {
    const path = `${folder}/text`;
    await Deno.writeFile(path, Uint8Array.from([0xef, 0xbb, 0xbf, 0x68, 0xc3, 0xa9]));
    assert.equal(await runtime.readText(path), "hé");
    await Deno.writeFile(path, Uint8Array.from([0x68, 0xc3, 0xa9, 0xff, 0x68]));
    const error = await refusal(runtime.readText(path));
    assert.deepEqual([error.kind, error.code, error.where], ["input", "text.not-utf8", path]);
    assert.match(error.message, /offset 3/);
  }));

Deno.test("readText() refuses NUL characters by the offset of the first", () =>
  withFolder(async (folder) => {
    const path = `${folder}/text`;
    for (
      const [bytes, offset] of [[[0x68, 0, 0x69, 0], 1], [[0xff, 0xfe, 0x68, 0], 3], [[0xc3, 0xa9, 0], 2]] as const
    ) {
      await Deno.writeFile(path, Uint8Array.from(bytes));
      const error = await refusal(runtime.readText(path));
      assert.deepEqual([error.kind, error.code, error.where], ["input", "text.binary", path]);
      assert.match(error.message, new RegExp(`offset ${offset}; it looks like UTF-16 or a binary file`));
    }
  }));

Deno.test("readText() takes up to its limit and no more", () =>
  withFolder(async (folder) => {
    const path = `${folder}/text`;
    await Deno.writeTextFile(path, "x".repeat(3_000_000));
    assert.equal((await runtime.readText(path, { maxBytes: 3_000_000 })).length, 3_000_000);
    const error = await refusal(runtime.readText(path, { maxBytes: 2_999_999 }));
    assert.deepEqual([error.kind, error.code], ["input", "text.too-large"]);
  }));

Deno.test("readText() reads standard input for a dash, also from a pipe that has a name", async () => {
  const module = new URL("../../runtime/mod.ts", import.meta.url);
  for (const path of ["-", "/dev/stdin"]) {
    const script = `const { currentRuntime } = await import(${JSON.stringify(module.href)});
      console.log(JSON.stringify(await (await currentRuntime()).readText(${JSON.stringify(path)})));`;
    const command = new Deno.Command(Deno.execPath(), { args: ["eval", script], stdin: "piped", stdout: "piped" });
    await using child = command.spawn();
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode("é\n"));
    await writer.close();
    assert.equal(new TextDecoder().decode((await child.output()).stdout), '"é\\n"\n', path);
  }
});

Deno.test("execute() gives status and output, and undefined for a program that is not there", async () => {
  const host = runtime.host!;
  const result = await host.execute("sh", ["-c", "echo out; echo err >&2; exit 7"]);
  assert.deepEqual([result?.code, result?.output.includes("out"), result?.output.includes("err")], [7, true, true]);
  assert.equal(await host.execute("no-such-program-anywhere", []), undefined);
  const environment = { PALISADE_TEST: "set" };
  assert.match((await host.execute("sh", ["-c", 'echo "$PALISADE_TEST"'], { environment }))!.output, /^set$/m);
  assert.equal((await host.execute("sh", ["-c", "kill -9 $$"]))?.code, 137);
});

Deno.test("execute() keeps only the end of a long output", async () => {
  const result = await runtime.host!.execute("sh", ["-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo end"]);
  assert.equal(result?.output.length, 64 * 1024);
  assert.match(result!.output, /xend\n$/);
});
