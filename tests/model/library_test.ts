/** The library as others use it: its size, the examples of its documentation, and what it gives back. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import * as library from "../../mod.ts";
import { repositoryFiles, ROOT } from "../../tools/repository.ts";
import { makeDump } from "../_helper/dumps.ts";
import { PROSE, TINY_MODEL } from "../_helper/workbench.ts";

/**
 * Most bytes of `palisade-kv/core`, minified and packed: zlib's come to 25.0 kB, Deno's packs 0.5 % worse. What people
 * read about policies (`core/policy/about.ts`) is not in it.
 */
const CORE_BYTES = 25_150;

Deno.test("palisade-kv/core needs nothing else, and takes at most 25 kB minified and packed", async () => {
  const { outputFiles, metafile } = await build({
    absWorkingDir: ROOT,
    entryPoints: ["core/mod.ts"],
    bundle: true,
    minify: true,
    format: "esm",
    write: false,
    metafile: true,
  });
  for (const input of Object.keys(metafile.inputs)) assert.match(input, /^core\//);
  assert.ok(Object.values(metafile.outputs).every(({ imports }) => imports.length === 0));
  const bytes = gzipSync(outputFiles[0].contents, { level: 9 }).length;
  assert.ok(bytes > 10_000 && bytes <= CORE_BYTES, `${bytes} bytes`);
});

Deno.test("a backend or dense engine that there isn't is refused by name", async () => {
  const runtime = await library.currentRuntime();
  for (
    const [options, message] of [
      [{ backend: "wasn" }, /backend can't be "wasn"; did you mean wasm\?/],
      [{ dense: "cuda" }, /dense can't be "cuda"; want auto, web, node, wasm, webgpu/],
    ] as const
  ) {
    await assert.rejects(library.loadModel(TINY_MODEL, runtime, options as object), (error) => {
      assert.ok(error instanceof library.PalisadeError && error.code === "device.unknown" && error.kind === "usage");
      assert.match(error.message, message);
      return true;
    });
  }
});

interface Example {
  /** File and number in it. */
  readonly name: string;
  readonly code: string;
}

/** The ```ts blocks in doc comments of the product. */
async function examples(): Promise<Example[]> {
  const files = (await repositoryFiles()).filter((file) =>
    /^(mod\.ts$|(core|model|runtime|evaluate)\/.*\.ts$)/.test(file)
  );
  return files.flatMap((file) => {
    const comments = readFileSync(join(ROOT, file), "utf8").match(/\/\*\*[\s\S]*?\*\//g) ?? [];
    const blocks = comments.flatMap((
      comment,
    ) => [...comment.replace(/^\s*\* ?/gm, "").matchAll(/```ts\n([\s\S]*?)```/g)]);
    return blocks.map(([, code], i) => ({ name: `${file}, example ${i + 1}`, code }));
  });
}

const DUMP = makeDump(3, { length: 80, kvHeads: 3, group: 3, layers: 2, headDim: 64 });
/** What examples take from around them. */
const AROUND: Readonly<Record<string, unknown>> = {
  shape: DUMP.shape,
  layers: DUMP.layers,
  dump: { ...DUMP, layers: 2, read: (layer: number) => Promise.resolve(DUMP.layers[layer]) },
  text: PROSE.slice(0, 300),
  path: TINY_MODEL,
  runtime: await library.currentRuntime(),
};

/** Runs an example: names it doesn't import are the library's, or stand around it. */
async function run({ code }: Example): Promise<void> {
  const imports: string[] = [];
  const body = code.replace(/^import .*$/gm, (line) => {
    imports.push(
      line.replace(/"palisade-kv(\/core)?"/, (_, core) => JSON.stringify(fileUrl(core ? "core/mod.ts" : "mod.ts"))),
    );
    return "";
  }).replace(/"[^"]*\.gguf"/, JSON.stringify(TINY_MODEL));
  const own = imports.flatMap((line) => [.../\{(.*)\}/.exec(line)![1].matchAll(/\w+/g)].map(([name]) => name));
  const names = [...Object.keys(library), ...Object.keys(AROUND)].filter((name) => RegExp(`\\b${name}\\b`).test(body));
  const given = names.filter((name) =>
    !own.includes(name) && !RegExp(`(const|let) (\\{[^}]*)?\\b${name}\\b`).test(body)
  );
  const file = join(mkdtempSync(join(tmpdir(), "palisade-example-")), "example.ts");
  writeFileSync(file, `${imports.join("\n")}\nexport default async ({ ${given.join(", ")} }: any) => {\n${body}\n};\n`);
  const { default: example } = await import(pathToFileURL(file).href);
  await example({ ...library, ...AROUND });
}

function fileUrl(path: string): string {
  return pathToFileURL(join(ROOT, path)).href;
}

const EXAMPLES = await examples();

Deno.test("the library's documentation has examples", () => {
  for (const file of ["mod.ts", "core/mod.ts", "model/session.ts"]) {
    assert.ok(EXAMPLES.some(({ name }) => name.startsWith(`${file},`)), file);
  }
});

for (const example of EXAMPLES) Deno.test(`it runs: ${example.name}`, () => run(example));

Deno.test("a model's identity, saving and restoring tell how far they are, and stop when they are told to", async () => {
  const runtime = await library.currentRuntime(), told: number[][] = [], stop = new AbortController();
  await using model = await library.loadModel(TINY_MODEL, runtime, { backend: "wasm", dense: "wasm" });
  const aborted = AbortSignal.abort(new Error("enough")), size = model.file.size;
  await assert.rejects(model.identity({ signal: aborted }), /enough/);
  await assert.rejects(model.gate({ signal: aborted }), /enough/);
  const hashed = model.identity({ signal: stop.signal, onProgress: () => stop.abort(new Error("half way")) });
  await assert.rejects(hashed, /half way/);
  const identity = await model.identity({ onProgress: (...far) => told.push(far) });
  assert.deepEqual(told.at(-1), [size, size]);
  assert.equal(await model.identity(), identity);
  assert.equal(identity, createHash("sha256").update(readFileSync(TINY_MODEL)).digest("hex"));

  using context = await library.openContext(model, PROSE.slice(0, 300), { keep: "20%", policy: "snapkv" });
  const layers = Array.from({ length: model.config.layers }, (_, i) => [i + 1, model.config.layers]);
  const sink = new library.MemorySink(), saved: number[][] = [], restored: number[][] = [];
  await context.save(sink, { onLayer: (...far) => saved.push(far) });
  assert.deepEqual(saved, layers);
  let ended = "";
  const broken = { write: () => Promise.resolve(), commit: () => done("commit"), abort: () => done("abort") };
  const done = (what: string) => Promise.resolve(void (ended += what));
  const half = new AbortController(), onLayer = () => half.abort(new Error("half way"));
  await assert.rejects(context.save(broken, { signal: half.signal, onLayer }), /half way/);
  assert.equal(ended, "abort");
  const source = () => library.bufferSource(sink.bytes());
  using again = await model.restore(source(), { onLayer: (...far) => restored.push(far) });
  assert.deepEqual([restored, again.cache.entries()], [layers, context.cache.entries()]);
  const once = new AbortController();
  const stopped = model.restore(source(), { signal: once.signal, onLayer: () => once.abort(new Error("half way")) });
  await assert.rejects(stopped, /half way/);
});

for (const backend of ["ts", "wasm"] as const) {
  Deno.test(`fifty contexts come and go on ${backend}, and hold nothing`, async () => {
    const runtime = await library.currentRuntime();
    await using model = await library.loadModel(TINY_MODEL, runtime, {
      backend,
      dense: backend === "ts" ? "web" : "wasm",
    });
    const text = PROSE.slice(0, backend === "ts" ? 150 : 600),
      held: number[] = [],
      peaks: number[] = [],
      wasm: number[] = [];
    for (let i = 0; i < 50; i++) {
      using context = await library.openContext(model, text, {
        keep: "20%",
        policy: library.resolvePolicy("layer-defensive"),
      });
      const { answer } = await context.ask("Where do the stakes stand?", { maxTokens: 2 });
      assert.equal(typeof answer, "string");
      const { live, peak } = context.cache.bytes();
      peaks.push(peak);
      assert.ok(live > 0 && model.backend.memory().allocatedBytes >= live);
      context[Symbol.dispose]();
      held.push(model.backend.memory().allocatedBytes);
      wasm.push(model.backend.memory().wasmBytes);
    }
    assert.deepEqual(new Set(held), new Set([0]), "keys and values are given back");
    assert.equal(new Set(peaks).size, 1, "each context takes what the first took");
    // WebAssembly's memory never shrinks: what the first contexts needed is enough for all.
    assert.deepEqual(new Set(wasm.slice(2)), new Set([wasm[2]]));
  });
}
