/** `palisade evict`: decisions from dumps, wherever they come from. */
import assert from "node:assert/strict";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { Buffer } from "node:buffer";
import process from "node:process";
import { openSource } from "../../model/dump/open.ts";
import { parseSafetensors, writeSafetensors } from "../../model/file/safetensors.ts";
import { bufferSource } from "../../runtime/sources.ts";
import { spooled } from "../../runtime/spool.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { type ChildResult, runChild } from "../../tools/child.ts";
import { ROOT } from "../../tools/repository.ts";
import { readJson, readSafetensors } from "../_helper/golden.ts";
import { type CliOptions, palisade } from "../_helper/io.ts";
import { bytesOf, npyFile, npzFile } from "../_helper/numpy_files.ts";
import { TIED } from "../_helper/top_n.ts";
import { GOLDEN_POLICIES } from "../_helper/tiny.ts";
import { testFolder } from "../_helper/workbench.ts";

interface Line {
  readonly layer: number;
  readonly head: number;
  readonly count: number;
  readonly kept: number[];
  readonly certificate?: Record<string, number | null>;
  readonly notFinite?: Record<string, number>;
}

const folder = await testFolder("evict");
const at = (name: string) => join(folder, name);
const L97 = fileURLToPath(new URL("../data/golden/tiny-L97.safetensors", import.meta.url));
const L300 = fileURLToPath(new URL("../data/golden/tiny-L300.safetensors", import.meta.url));
const golden = (await readJson<{ kept: Record<string, Record<string, number[][][]>> }>("tiny-L300.kept.json")).kept;
const tensors = await readSafetensors("tiny-L97.safetensors");

async function lines(parameters: readonly string[], options?: CliOptions): Promise<Line[]> {
  const { code, out, err } = await palisade(["evict", ...parameters], options);
  assert.equal(code, 0, err);
  return out.trimEnd().split("\n").map((line) => JSON.parse(line));
}

function kept(found: readonly Line[]): number[][][] {
  const sets: number[][][] = [];
  for (const { layer, head, kept, count } of found) {
    assert.equal(count, kept.length);
    (sets[layer] ??= [])[head] = kept;
  }
  return sets;
}

type Arrays = Record<string, { data: Float32Array; shape: readonly number[] }>;

/** Standard input of these pieces. */
function piped(...pieces: Uint8Array[]): CliOptions {
  async function* readBytes() {
    yield* pieces;
  }
  return { runtime: { readBytes } };
}

Deno.test("palisade evict keeps the golden sets, for every golden policy whose scores don't tie", async () => {
  let compared = 0;
  for (const [r, sets] of Object.entries(golden)) {
    for (const [name, policy] of Object.entries(GOLDEN_POLICIES)) {
      if (TIED.includes(name)) continue;
      const keep = String(Math.round((1 - Number(r)) * 1e12) / 1e12);
      for (const backend of ["ts", "wasm"]) {
        const found = await lines([L300, "--policy", policy, "--keep", keep, "--rope", "10000", "--backend", backend]);
        assert.deepEqual(kept(found), sets[name], `${name} at ${r}, ${backend}`);
        compared++;
      }
    }
  }
  assert.equal(compared, 20 * Object.keys(golden).length);
});

const COMMAND = ["--policy", "defensive", "--keep", "30%"];
const wanted = await lines([L97, ...COMMAND]);

Deno.test("palisade evict takes the same dump from a pipe, a folder and zip files", async () => {
  const bytes = await readFile(L97);
  const small = Array.from({ length: 20 }, (_, i) => bytes.subarray(3 * i, 3 * i + 3));
  assert.deepEqual(await lines(["-", ...COMMAND], piped(...small, bytes.subarray(60))), wanted);
  const parts = ["q", "k", "v", "wo"],
    arrays: Arrays[] = [{}, {}, {}],
    all: Arrays = {};
  for (const layer of [0, 1, 2]) {
    await mkdir(at(`arrays/layers/${layer}`), { recursive: true });
    for (const part of parts) {
      const { data, shape } = tensors.get(`layers/${layer}/${part}`)!;
      await writeFile(at(`arrays/layers/${layer}/${part}.npy`), npyFile(bytesOf(data), shape));
      arrays[layer][part] = all[`layers/${layer}/${part}`] = { data, shape };
    }
  }
  await mkdir(at("files"));
  await writeFile(at("files/layer_0.npz"), npzFile(arrays[0], true));
  await writeFile(at("files/layer_1.npz"), npzFile(arrays[1]));
  const last = Object.entries(arrays[2]).map(([name, each]) => ({ name, dtype: "F32" as const, ...each }));
  await writeFile(at("files/layer_2.safetensors"), writeSafetensors(last, {}));
  await writeFile(at("files/notes.txt"), "not looked at");
  await writeFile(at("all.npz"), npzFile(all));
  for (const path of ["arrays", "files", "all.npz"]) {
    assert.deepEqual(await lines([at(path), ...COMMAND]), wanted, path);
  }
});

Deno.test("palisade evict explains what eviction can have cost, and finds a budget for a risk", async () => {
  const found = await lines([L97, ...COMMAND, "--explain"]);
  assert.deepEqual(kept(found), kept(wanted));
  for (const { count, certificate } of found) {
    assert.equal(certificate!.evicted, 97 - count);
    for (const name of ["largestRisk", "riskSum", "evictedMass", "outputBound", "projectedBound"]) {
      assert.ok(certificate![name]! >= 0, name);
    }
  }
  const few = await lines([L97, "--policy", "snapkv", "--risk", "0.3"]),
    more = await lines([L97, "--policy", "snapkv", "--risk", "0.05"]);
  assert.ok(few[0].count < more[0].count && more[0].count <= 97);
  const masses = await lines([L97, "--policy", "snapkv", "--keep", `${few[0].count}`, "--explain"]);
  assert.ok(masses.every(({ certificate }) => certificate!.evictedMass! < 1));
});

Deno.test("palisade evict --write writes positions as safetensors, NumPy's arrays and lines", async () => {
  for (const name of ["kept.safetensors", "kept.npy", "kept.jsonl"]) {
    for (const _ of [1, 2]) {
      const { code, out, err } = await palisade(["evict", L97, ...COMMAND, "--write", at(name)]);
      assert.deepEqual([code, out, err], [0, "", ""], name);
    }
  }
  const text = await readFile(at("kept.jsonl"), "utf8");
  assert.deepEqual(text.trimEnd().split("\n").map((line) => JSON.parse(line)), wanted);
  const written = parseSafetensors(await readFile(at("kept.safetensors")), "kept");
  assert.deepEqual([...written.tensors.keys()].slice(0, 2), ["layers/0/counts", "layers/0/kept"]);
  assert.deepEqual(written.tensors.get("layers/0/kept")!.shape, [wanted[0].count + wanted[1].count]);
  const rows = wanted.flatMap(({ layer, head, kept }) => kept.map((position) => [layer, head, position]));
  const npy = await readFile(at("kept.npy"));
  assert.match(npy.toString("latin1"), RegExp(`'<i4', 'fortran_order': False, 'shape': \\(${rows.length}, 3\\)`));
  assert.deepEqual([
    ...new Int32Array(npy.buffer.slice(npy.byteOffset + npy.length - 12 * rows.length, npy.byteOffset + npy.length)),
  ], rows.flat());
  const foreign = await palisade(["evict", L97, ...COMMAND, "--write", at("files/layer_0.npz").replace("npz", "npy")]);
  assert.equal(foreign.code, 0);
  for (
    const [path, message] of [["x.txt", /ends in \.safetensors/], [
      "all.safetensors",
      /not decisions of palisade evict/,
    ]] as const
  ) {
    await writeFile(at("all.safetensors"), await readFile(L97));
    const { code, err } = await palisade(["evict", L97, ...COMMAND, "--write", at(path)]);
    assert.equal(code, 3);
    assert.match(err, message);
  }
  const inside = await palisade(["evict", at("files"), ...COMMAND, "--write", at("files/layer_2.safetensors")]);
  assert.equal(inside.code, 3);
  assert.match(inside.err, /it is also read, as the dump/);
});

Deno.test("palisade evict says what is not finite, and refuses what is damaged", async () => {
  const odd = new Map([...tensors].filter(([name]) => name.startsWith("layers/0/")));
  const k = odd.get("layers/0/k")!;
  k.data[5] = NaN;
  const list = [...odd].map(([name, each]) => ({ name, dtype: "F32" as const, ...each }));
  await writeFile(at("odd.safetensors"), writeSafetensors(list, {}));
  const { code, out, err } = await palisade(["evict", at("odd.safetensors"), "--policy", "snapkv"]);
  assert.equal(code, 0);
  assert.equal(err, "palisade: numbers that are not finite: 1 of k in layer 0\n");
  assert.deepEqual(JSON.parse(out.split("\n")[0]).notFinite, { k: 1 });
  assert.equal((await palisade(["evict", at("odd.safetensors"), "--quiet"])).err, "");
  const refused = async (parameters: readonly string[], code: number, message: RegExp, options?: CliOptions) => {
    const result = await palisade(["evict", ...parameters], options);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.equal(result.out, "");
  };
  await refused([at("none")], 3, /none: there is no such file/);
  await refused([], 2, /missing required argument 'dump'/);
  await refused([L97, "--rope", "x"], 2, /base of the frequencies/);
  await refused([L97, "--rope", "0"], 2, /base of the frequencies/);
  await refused([L97, "--rope", "10000,half,99", "--policy", "snapkv"], 3, /--rope.*99 of 8/);
  await refused([L97, "--policy", "expected-attention"], 3, /say how they were turned, --rope/);
  await refused([L97, "--risk", "0.1", "--keep", "20%"], 2, /--risk.*--keep/);
  await refused([L97, "--gate", at("no")], 2, /--gate.*--policy gate/);
  await refused([L97, "--policy", "gate", "--gate", at("no")], 3, /no/);
  await refused([L97, "--names", "k"], 3, /PART=NAME/);
  await refused([at("files/notes.txt")], 3, /no dump: want a \.safetensors/);
  await refused(["-"], 3, /standard input is no dump/, piped());
  await refused(["-"], 3, /standard input is no dump/, piped(new Uint8Array(40)));
  await refused(
    ["-"],
    3,
    /header of 97 bytes in a file of 16/,
    piped(Uint8Array.from([97, 0, 0, 0, 0, 0, 0, 0, 0x7b]), new Uint8Array(7)),
  );
  await mkdir(at("empty/deep"), { recursive: true });
  await refused([at("empty")], 3, /no \.safetensors, \.npy or \.npz file in/);
  await mkdir(at("twice/k"), { recursive: true });
  await writeFile(at("twice/k.npz"), npzFile({ a: { data: Float32Array.of(1), shape: [1] } }));
  await writeFile(at("twice/k/a.npy"), npyFile(new Uint8Array(4), [1]));
  await refused([at("twice")], 3, /k\/a comes twice/);
});

Deno.test("spooled() puts what is large into a file, and leaves nothing", async () => {
  const base = await currentRuntime(), made: string[] = [], bytes = await readFile(L97);
  const host = { ...base.host!, temporaryFolder: folder };
  const runtime = Object.assign(Object.create(base), {
    host,
    ...piped(bytes.subarray(0, 5000), bytes.subarray(5000)).runtime,
  });
  const source = await spooled(runtime, "-", { inMemory: 6000 });
  made.push(...(await readdir(folder)).filter((name) => name.endsWith(".pipe")));
  assert.equal(made.length, 1);
  assert.equal(source.size, bytes.length);
  assert.deepEqual(Buffer.from(await source.read(4990, 20)), bytes.subarray(4990, 5010));
  const container = await openSource(source);
  await container.close();
  await assert.rejects(
    spooled(runtime, "-", {
      inMemory: 6000,
      check: () => {
        throw new Error("nothing of this");
      },
    }),
    /nothing of this/,
  );
  async function* readBytes() {
    yield bytes;
    throw new Error("the pipe broke");
  }
  await assert.rejects(
    spooled(Object.assign(Object.create(runtime), { readBytes }), "x", { inMemory: 10 }),
    /the pipe broke/,
  );
  assert.deepEqual((await readdir(folder)).filter((name) => name.endsWith(".pipe")), []);
  const held = await spooled(runtime, "-");
  assert.deepEqual(Buffer.from(await held.read(0, held.size)), bytes);
  assert.equal((await openSource(bufferSource(bytes.slice()))).names.length > 0, true);
});

/** In a shell, as a process. */
function shell(script: string): Promise<ChildResult> {
  const command = `${process.execPath} run -A --no-check ${join(ROOT, "cli/main.ts")} evict`;
  return runChild("sh", ["-c", script.replaceAll("EVICT", command)], { timeout: 120 });
}

Deno.test("palisade evict works in pipes: data alone on standard output, quiet where nobody reads on", async () => {
  const { code, stdout, stderr } = await shell(`cat ${L97} | EVICT - ${COMMAND.join(" ")}`);
  assert.deepEqual([code, stderr], [0, ""]);
  assert.deepEqual(stdout.trimEnd().split("\n").map((line) => JSON.parse(line)), wanted);
  const redirected = await shell(`EVICT - ${COMMAND.join(" ")} < ${L97} | head -n 1`);
  assert.deepEqual([redirected.stdout, redirected.stderr], [`${JSON.stringify(wanted[0])}\n`, ""]);
  const named = await shell(
    `mkfifo ${at("pipe")}; cat ${L97} > ${at("pipe")} & EVICT ${at("pipe")} ${COMMAND.join(" ")} | sed 1q; wait`,
  );
  assert.deepEqual([named.stdout, named.stderr], [`${JSON.stringify(wanted[0])}\n`, ""]);
});
