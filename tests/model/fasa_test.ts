/** FASA: which chunks agree, what a token then reads, and that nothing is lost. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { chunkChannels, contextualAgreement, dominantChannels } from "../../core/measure/chunk_agreement.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { answerBeside, answerFully } from "../../evaluate/sweep/answer.ts";
import { extend } from "../../model/decode/extend.ts";
import { calibrateChunks } from "../../model/foresight/calibrate.ts";
import { type Chunks, CHUNKS_FILE, parseChunks, readChunks, writeChunks } from "../../model/foresight/file.ts";
import { findChunks } from "../../model/foresight/find.ts";
import { checkForesees, foresightFigures } from "../../model/foresight/foresee.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { loadModel } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { bufferSource } from "../../runtime/sources.ts";
import { anyChunks } from "../_helper/chunks.ts";
import { assertClose } from "../_helper/close.ts";
import { palisade } from "../_helper/io.ts";
import { bytesSource, savedBytes, snapshotModel } from "../_helper/snapshots.ts";
import { PROSE, testFolder, TINY_MODEL, tinyModel } from "../_helper/workbench.ts";

const TEXT = PROSE.slice(0, 320);
const POLICY = "fasa(entries=40, chunks=0.5, window=8)";

Deno.test("contextualAgreement() is what NumPy counts", () => {
  const golden = JSON.parse(readFileSync(new URL("../data/stages/chunks.json", import.meta.url), "utf8"));
  const [queries, keys] = [golden.queries, golden.keys].map((each: number[]) => Float32Array.from(each));
  const chunks = chunkChannels(golden.dim, { pairs: "half", rotated: golden.dim });
  const input = { queries, keys, headDim: golden.dim, visible: golden.visible };
  assertClose(contextualAgreement(input, chunks, golden.top), golden.agreement, 1e-12, "agreement");
});

Deno.test("chunks are the pairs that RoPE turns, then what it doesn't turn", () => {
  assert.deepEqual(chunkChannels(6, { pairs: "interleaved", rotated: 6 }), [[0, 1], [2, 3], [4, 5]]);
  assert.deepEqual(chunkChannels(7, { pairs: "half", rotated: 4 }), [[0, 2], [1, 3], [4, 5], [6]]);
  const chunks = chunkChannels(6, { pairs: "half", rotated: 6 });
  assert.deepEqual([...dominantChannels([0.1, 0.3, 0.3], chunks, 0.34)], [1, 4]);
  assert.deepEqual([...dominantChannels([0.1, 0.3, 0.3], chunks, 0.67)], [1, 2, 4, 5]);
  assert.deepEqual([...dominantChannels([0, 0, 0], chunks, 0.001)], [0, 3]);
});

for (const cacheType of ["f32", "int8"] as const) {
  Deno.test(`a token reads the entries that its chunks choose, in ${cacheType}, and all of them stay`, async () => {
    await using plain = await tinyModel("ts");
    await using kernels = await tinyModel("wasm");
    const options: ContextOptions = { policy: POLICY, cacheType };
    using a = await openContext(plain, TEXT, options);
    using b = await openContext(kernels, TEXT, options);
    using full = await openContext(kernels, TEXT, { policy: "full", cacheType });
    const { layers, kvHeads, headDim } = kernels.config;
    assert.equal(b.cache.entries(), full.cache.entries());
    // Half of the chunks' channels once more in float32, and the list of them.
    const added = headDim / 2 * (4 * full.cache.entries() + 2 * layers * kvHeads);
    assert.equal(b.cache.bytes().live - full.cache.bytes().live, added);
    for (let layer = 0; layer < layers; layer++) {
      assert.deepEqual(await copyHeads(b.cache.rows(layer)), await copyHeads(full.cache.rows(layer)));
      for (let head = 0; head < kvHeads; head++) {
        const { channels, ...reading } = b.cache.reduced(layer, head).foresight!;
        assert.deepEqual(reading, { entries: 40, sinks: 4, recent: 8 });
        assert.deepEqual(a.cache.reduced(layer, head), b.cache.reduced(layer, head));
        assert.equal(channels.length, headDim / 2);
      }
    }
    const logits = async (model: typeof plain, context: typeof a) => {
      const mark = context.cache.mark(), got = await extend(model.dense, context.cache, [7]);
      context.cache.trim(mark);
      return got;
    };
    const [one, other, whole] = [await logits(plain, a), await logits(kernels, b), await logits(kernels, full)];
    assertClose(other, one, cacheType === "f32" ? 1e-4 : 2e-2, "logits");
    assert.ok(other.some((x, i) => Math.abs(x - whole[i]) > 1e-6), "nothing was left unread");
  });
}

Deno.test("with all entries, fasa is the full cache; with all chunks it reads the entries that whole keys choose", async () => {
  await using model = await tinyModel("wasm");
  using full = await openContext(model, TEXT, { policy: "full" });
  using all = await openContext(model, TEXT, { policy: "fasa(entries=100000)" });
  const answer = async (context: typeof full) => (await context.ask("How many?", { maxTokens: 8 })).ids;
  assert.deepEqual(await answer(all), await answer(full));
  const mark = full.cache.mark(), other = all.cache.mark();
  assert.deepEqual(await extend(model.dense, all.cache, [9]), await extend(model.dense, full.cache, [9]));
  full.cache.trim(mark);
  all.cache.trim(other);
  using every = await openContext(model, TEXT, { policy: "fasa(entries=40, chunks=1)" });
  assert.equal(every.cache.reduced(0, 0).foresight!.channels.length, model.config.headDim);
});

Deno.test("rows= makes two tiers: what chooses stays in float32, and all that may be chosen lies in int8", async () => {
  await using model = await tinyModel("wasm");
  using full = await openContext(model, TEXT, { policy: "full(rows=int8)" });
  using tiers = await openContext(model, TEXT, { policy: POLICY.replace(")", ", rows=int8)") });
  const { layers, kvHeads, headDim } = model.config, entries = full.cache.entries();
  const chosenBy = headDim / 2 * (4 * entries + 2 * layers * kvHeads);
  assert.equal(tiers.cache.bytes().live, full.cache.bytes().live + chosenBy);
  const of = tiers.tokens, told = { entries: 40, of, channels: headDim / 2, headDim };
  assert.deepEqual([foresightFigures(tiers.cache), foresightFigures(full.cache)], [told, null]);
  for (let layer = 0; layer < layers; layer++) {
    assert.deepEqual(await copyHeads(tiers.cache.rows(layer)), await copyHeads(full.cache.rows(layer)));
  }
  assert.ok((await tiers.ask("How many?", { maxTokens: 4 })).ids.length > 0);
});

Deno.test("what fasa is compared by reads a part, too: the answer is that of ask()'s own steps", async () => {
  await using model = await tinyModel("wasm");
  using full = await openContext(model, TEXT, { policy: "full" });
  using part = await openContext(model, TEXT, { policy: POLICY });
  const asked = [5, 6, 7], options = { maxNewTokens: 8, contextLength: 100_000 };
  const own = await answerFully(model, part.cache, asked, options),
    whole = await answerFully(model, full.cache, asked, options);
  const beside = await answerBeside(model, part.cache, asked, whole, options);
  assert.deepEqual(beside.ids, own.ids);
  assert.ok(beside.kl.max > 1e-7, `${beside.kl.max}`);
});

Deno.test("a context that is read in part comes back from its snapshot, at rest, and under a cap", async () => {
  await using model = await snapshotModel();
  const options: ContextOptions = { policy: POLICY }, ask = { maxTokens: 6 };
  using context = await openContext(model, TEXT, options);
  const { ids } = await context.ask("How many?", ask), bytes = await savedBytes(context);
  using again = await openContext(model, TEXT, { ...options, snapshot: bytesSource(bytes) });
  assert.deepEqual(again.cache.reduced(1, 0), context.cache.reduced(1, 0));
  assert.deepEqual((await again.ask("How many?", ask)).ids, ids);
  using resting = await openContext(model, TEXT, { ...options, cloak: true });
  assert.equal((await resting.ask("How many?", ask)).ids.length, ids.length);
  const tokens = context.tokens + 60;
  using capped = await openContext(model, TEXT, { ...options, maxCache: { tokens, rule: "streaming-llm" } });
  assert.deepEqual((await capped.ask("How many?", ask)).ids, ids);
  const others = {
    ...model,
    chunks: () =>
      Promise.resolve({
        ...anyChunks(model.config),
        agreement: new Float32Array(anyChunks(model.config).agreement.length),
      }),
  };
  const refused = openContext(others, TEXT, { ...options, snapshot: bytesSource(bytes) });
  await assert.rejects(refused, { code: "snapshot.identity" });
  const longer = openContext(model, `${TEXT} And more.`, { ...options, snapshot: bytesSource(bytes) });
  await assert.rejects(longer, { code: "snapshot.tokens" });
});

Deno.test("calibrateChunks() finds the chunks of each head, the same each time, whatever computes", async () => {
  await using model = await tinyModel("wasm");
  await using plain = await tinyModel("ts");
  const texts = [TEXT, PROSE.slice(900, 1200)].map((text) => contextIds(model.frame, model.tokenizer, text));
  const options = { texts, sources: ["made"], seed: 1, sha256: "a".repeat(64) }, progress: number[] = [];
  const { heldOut, ...chunks } = await calibrateChunks(model, {
    ...options,
    onProgress: (done) => progress.push(done),
  });
  assert.equal(heldOut, null);
  const { layers, kvHeads, headDim } = model.config;
  assert.deepEqual(chunks.shape, [layers, kvHeads, headDim / 2]);
  assert.deepEqual(progress, Array.from({ length: 2 * layers }, (_, i) => i + 1));
  assert.ok(chunks.agreement.every((each) => each > 0 && each <= 1));
  const tried = await calibrateChunks(model, { ...options, heldOut: texts[0].slice(0, 200) });
  assert.deepEqual(tried.agreement, chunks.agreement);
  // Several together find more than any one does on average, and than chance would.
  const mean = chunks.agreement.reduce((sum, each) => sum + each, 0) / chunks.agreement.length;
  assert.ok(tried.heldOut! > mean && tried.heldOut! > tried.info.top / 200 && tried.heldOut! <= 1, `${tried.heldOut}`);
  const again = await calibrateChunks(model, options);
  assert.deepEqual([again.agreement, again.info], [chunks.agreement, chunks.info]);
  assertClose((await calibrateChunks(plain, options)).agreement, chunks.agreement, 0.02, "agreement");
  // Chance would agree about top of all entries.
  const best = Math.max(...chunks.agreement), length = Math.min(...texts.map((ids) => ids.length));
  assert.ok(best > 1.2 * chunks.info.top / length, `${best}`);
});

Deno.test("calibrate --kind fasa writes what fasa finds by the model's hash, and what is no such file is refused", async () => {
  const folder = await testFolder("fasa"),
    out = join(folder, "tiny.chunks.safetensors"),
    runtime = await currentRuntime();
  const told = ["calibrate", "--kind", "fasa", "--model", TINY_MODEL, "--tokens", "1000", "--out", out];
  const { code, out: printed, err } = await palisade([...told, "--json"]);
  assert.equal(code, 0, err);
  const figures = JSON.parse(printed);
  assert.ok(figures.best > figures.mean && figures.best <= 1, printed);
  await using model = await loadModel(TINY_MODEL, runtime, { dense: "web", backend: "wasm", frame: "line" });
  const found = await model.chunks(out);
  assert.equal(found.info.model.sha256, await model.identity());
  using context = await openContext(model, TEXT, { policy: `fasa(entries=40, file="${out}")` });
  assert.ok(context.cache.foresees);
  // A file that is no such one isn't written over.
  await writeFile(join(folder, "mine.txt"), "not to be lost");
  const harmed = await palisade([...told.slice(0, -1), join(folder, "mine.txt")]);
  assert.notEqual(harmed.code, 0);
  assert.equal(await CHUNKS_FILE.problem(bufferSource(new Uint8Array(4), "x")) !== undefined, true);
  assert.equal(await CHUNKS_FILE.problem(bufferSource(writeChunks(found), "x")), undefined);
  const nobody = { name: "nobody", config: model.config, identity: () => Promise.resolve("f".repeat(64)) };
  await assert.rejects(findChunks(nobody, runtime, out), { code: "chunks.model" });
  await assert.rejects(findChunks(nobody, runtime), { code: "chunks.none", message: /calibrate --kind fasa/ });
});

Deno.test("parseChunks() takes what writeChunks() wrote, and refuses everything else by name", async () => {
  await using model = await tinyModel("ts");
  const good = anyChunks(model.config), { info } = good;
  const parsed = parseChunks(writeChunks(good), "made up");
  assert.deepEqual(parsed, good);
  const bad = (change: Partial<Chunks>) => writeChunks({ ...good, ...change });
  const [layers, kvHeads, count] = good.shape;
  const cases: [Uint8Array, string][] = [
    [bad({ agreement: good.agreement.map(() => 2) }), "chunks.values"],
    [bad({ agreement: good.agreement.map(() => NaN) }), "chunks.values"],
    [bad({ shape: [layers, kvHeads * count] as unknown as Chunks["shape"] }), "chunks.shape"],
    [bad({ info: { ...info, format: 2 as 1 } }), "chunks.format"],
    [bad({ info: { ...info, model: { ...info.model, sha256: "short" } } }), "chunks.metadata"],
    [bad({ info: { ...info, calibration: {} as typeof info.calibration } }), "chunks.metadata"],
  ];
  for (const [bytes, code] of cases) assert.throws(() => parseChunks(bytes, "bad"), { code });
  const large = { ...bufferSource(new Uint8Array(8), "large"), size: 2 ** 27 };
  await assert.rejects(readChunks(large, model.runtime), { code: "chunks.large" });
});

Deno.test("fasa is refused by name where it can't be", async () => {
  await using model = await tinyModel("wasm");
  const open = (options: ContextOptions) => openContext(model, TEXT, options);
  assert.throws(() => resolvePolicy("fasa(entries=20)"), { code: "policy.fasa" });
  await assert.rejects(open({ policy: POLICY, positions: "rerotate" }), { code: "fasa.keys" });
  await assert.rejects(open({ policy: POLICY, keyChannels: "60%" }), { code: "fasa.keys" });
  await assert.rejects(open({ policy: POLICY, merge: "mean" }), { code: "fasa.stages" });
  await assert.rejects(open({ policy: POLICY, refit: "values" }), { code: "fasa.stages" });
  await assert.rejects(open({ policy: POLICY, cacheType: "int4" }), { code: "fasa.type" });
  await assert.rejects(open({ policy: 'fasa(entries=40, rows="k=int8,v=int4")' }), { code: "fasa.type" });
  assert.throws(() => checkForesees(resolvePolicy(POLICY).needs, { name: "webgpu" }), { code: "fasa.backend" });
  assert.doesNotThrow(() => checkForesees({}, { name: "webgpu" }));
});
