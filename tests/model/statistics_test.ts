/** Statistics of queries: what is summed up, the file of them, and what goes by them. */
import assert from "node:assert/strict";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { PalisadeError } from "../../core/errors.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { sharesPrefill } from "../../evaluate/sweep/shared_prefill.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { openContext } from "../../model/session.ts";
import { loadPolicyFile } from "../../model/policy_files/policy_files.ts";
import { calibrateStatistics } from "../../model/statistics/calibrate.ts";
import {
  checkStatistics,
  parseStatistics,
  readStatistics,
  type Statistics,
  STATISTICS_FILE,
  writeStatistics,
} from "../../model/statistics/file.ts";
import { findStatistics, STATISTICS_SUFFIX } from "../../model/statistics/find.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { bufferSource } from "../../runtime/sources.ts";
import { assertClose } from "../_helper/close.ts";
import { palisade } from "../_helper/io.ts";
import { holds } from "../_helper/property.ts";
import { bytesSource, savedBytes } from "../_helper/snapshots.ts";
import { anyStatistics } from "../_helper/statistics.ts";
import { PROSE, testFolder, TINY_MODEL, tinyModel } from "../_helper/workbench.ts";

const TEXT = PROSE.slice(0, 320), OPTIONS = { sources: ["made"], seed: 1, sha256: "a".repeat(64) };
/** Those that may go by what was calibrated. */
const NAMES = ["expected-attention", "qfilter", "triattention"];

function textsOf(model: Model): number[][] {
  return [0, 1, 2, 3, 4, 5].map((i) => contextIds(model.frame, model.tokenizer, PROSE.slice(900 * i, 900 * i + 600)));
}

async function windowModel(): Promise<Model> {
  const path = fileURLToPath(new URL("../data/models/gemma3-windows.gguf", import.meta.url));
  return await loadModel(path, await currentRuntime(), { dense: "web", backend: "wasm", frame: "line" });
}

Deno.test("calibrateStatistics() has mean, covariance and lengths of all queries but each text's first four", async () => {
  await using model = await tinyModel("wasm");
  await using plain = await tinyModel("ts");
  const texts = textsOf(model), { layers, heads, headDim, ropes } = model.config, progress: number[] = [];
  const onProgress = (done: number) => progress.push(done);
  const found = await calibrateStatistics(model, { ...OPTIONS, texts, onProgress });
  assert.deepEqual(progress, Array.from({ length: texts.length * layers }, (_, i) => i + 1));
  const tokens = texts.reduce((sum, { length }) => sum + length - 4, 0);
  assert.deepEqual(found.info.calibration, { texts: ["made"], tokens, seed: 1 });
  const rows: number[][] = [], layer = 1, head = heads - 1;
  for (const ids of texts) {
    using cache = new RaggedCache(model.backend, model.config);
    const onQueries = (of: number, queries: Float32Array, first: number, count: number) => {
      for (let t = 0; t < count; t++) {
        const from = (t * heads + head) * headDim;
        if (of === layer && first + t >= 4) rows.push([...queries.subarray(from, from + headDim)]);
      }
    };
    using reader = await LayerReader.open(model, cache, ids, { needs: {}, window: 1, onQueries });
    for (let l = 0; l < layers; l++) reader.release(await reader.layer(l));
  }
  assert.equal(rows.length, tokens);
  const meanOf = (of: (row: number[]) => number) => rows.reduce((sum, row) => sum + of(row), 0) / rows.length;
  const dims = Array.from({ length: headDim }, (_, d) => d), mean = dims.map((d) => meanOf((row) => row[d]));
  const covariance = dims.flatMap((a) => dims.map((b) => meanOf((row) => (row[a] - mean[a]) * (row[b] - mean[b]))));
  const half = headDim / 2, halves = ropes[layer].pairs === "half";
  const lengths = dims.slice(0, half).map((f) =>
    meanOf((row) => halves ? Math.hypot(row[f], row[f + half]) : Math.hypot(row[2 * f], row[2 * f + 1]))
  );
  const at = layer * heads + head;
  assertClose(found.mean.subarray(at * headDim, (at + 1) * headDim), mean, 1e-5, "mean");
  assertClose(found.covariance.subarray(at * headDim ** 2, (at + 1) * headDim ** 2), covariance, 1e-5, "covariance");
  assertClose(found.lengths.subarray(at * half, (at + 1) * half), lengths, 1e-5, "lengths");
  assert.ok(found.concentration > 0 && found.concentration <= 1, `${found.concentration}`);
  const other = await calibrateStatistics(plain, { ...OPTIONS, texts });
  for (const name of ["mean", "covariance", "lengths"] as const) assertClose(other[name], found[name], 1e-4, name);
});

Deno.test("calibrateStatistics() sums up no fewer than 1000 tokens, and no layer that looks back over a window", async () => {
  await using model = await tinyModel("wasm");
  const texts = textsOf(model);
  await assert.rejects(calibrateStatistics(model, { ...OPTIONS, texts: texts.slice(0, 2) }), {
    code: "statistics.tokens",
  });
  await using windows = await windowModel();
  const { windows: widths, heads, headDim } = windows.config;
  const { mean } = await calibrateStatistics(windows, {
    ...OPTIONS,
    texts: [...textsOf(windows), ...textsOf(windows)],
  });
  const each = heads * headDim;
  widths.forEach((width, layer) => {
    const isZero = mean.subarray(layer * each, (layer + 1) * each).every((x) => x === 0);
    assert.equal(isZero, width > 0, `layer ${layer}`);
  });
});

Deno.test("calibrate --kind statistics writes what the policies find by the model's hash", async () => {
  const folder = await testFolder("statistics"), out = join(folder, `tiny${STATISTICS_SUFFIX}`);
  const real = await currentRuntime();
  const told = ["calibrate", "--kind", "statistics", "--model", TINY_MODEL, "--tokens", "1000", "--out", out];
  const { code, out: printed, err } = await palisade([...told, "--json"]);
  assert.equal(code, 0, err);
  const figures = JSON.parse(printed);
  assert.ok(
    figures.concentration > 0 && figures.concentration <= 1 && figures.info.calibration.tokens >= 1000,
    printed,
  );
  const words = await palisade(told);
  assert.match(words.out, /queries of \d+ tokens of built in .*\nwrote .*statistics=calibrated/);
  const runtime = {
    ...real,
    environment: (name: string) => name === "PALISADE_CACHE" ? folder : real.environment(name),
  };
  await using model = await loadModel(TINY_MODEL, runtime, { dense: "web", backend: "wasm", frame: "line" });
  const identity = { name: "nobody", config: model.config, identity: () => model.identity() };
  await assert.rejects(openContext(model, TEXT, { policy: "qfilter(statistics=calibrated)" }), {
    code: "statistics.none",
    message: /calibrate --kind statistics/,
  });
  await mkdir(join(folder, "gates"));
  await writeFile(join(folder, "gates", `a${STATISTICS_SUFFIX}`), "no such file");
  await writeFile(join(folder, "gates", `b${STATISTICS_SUFFIX}`), writeStatistics(anyStatistics(model.config)));
  await copyFile(out, join(folder, "gates", `c${STATISTICS_SUFFIX}`));
  const own = await findStatistics(identity, runtime);
  assert.equal(own.info.model.sha256, await model.identity());
  for (const name of NAMES) {
    using found = await openContext(model, TEXT, { policy: `${name}(statistics=calibrated)`, keep: "30%" });
    using named = await openContext(model, TEXT, { policy: `${name}(statistics="${out}")`, keep: "30%" });
    using context = await openContext(model, TEXT, { policy: name, keep: "30%" });
    const kept = (each: typeof found) => [0, 1].map((layer) => [...each.cache.positions(layer, 0)]);
    assert.deepEqual(kept(named), kept(found), name);
    assert.notDeepEqual(kept(context), kept(found), name);
    assert.equal(found.policy.parameters.statistics, "calibrated");
  }
  const nobody = { ...identity, identity: () => Promise.resolve("f".repeat(64)) };
  await assert.rejects(findStatistics(nobody, runtime, out), { code: "statistics.model" });
  await assert.rejects(findStatistics(nobody, { ...runtime, host: undefined }), { code: "statistics.none" });
  await assert.rejects(loadPolicyFile("triattention(statistics=nowhere)", runtime), /character 14 of/);
  // A file that is no such one isn't written over.
  await writeFile(join(folder, "mine.txt"), "not to be lost");
  assert.notEqual((await palisade([...told.slice(0, -1), join(folder, "mine.txt")])).code, 0);
  assert.equal(await STATISTICS_FILE.problem(bufferSource(writeStatistics(own), "x")), undefined);
});

Deno.test("parseStatistics() takes what writeStatistics() wrote, and refuses everything else by name", async () => {
  await using model = await tinyModel("ts");
  const good = anyStatistics(model.config), { info, shape } = good;
  assert.deepEqual(parseStatistics(writeStatistics(good), "made up"), good);
  const bad = (change: Partial<Statistics>) => writeStatistics({ ...good, ...change });
  const at = (values: Float32Array, value: number) => values.map((each, i) => i === 1 ? value : each);
  const tokens = (count: number) => ({ ...info, calibration: { ...info.calibration, tokens: count } });
  const cases: [Uint8Array, string][] = [
    [bad({ mean: at(good.mean, NaN) }), "statistics.values"],
    [bad({ covariance: at(good.covariance, Infinity) }), "statistics.values"],
    [bad({ covariance: at(good.covariance, 1) }), "statistics.values"],
    [bad({ lengths: at(good.lengths, -1) }), "statistics.values"],
    [bad({ info: { ...info, format: 2 as 1 } }), "statistics.format"],
    [bad({ info: { ...info, model: { ...info.model, sha256: "short" } } }), "statistics.metadata"],
    [bad({ info: tokens(999) }), "statistics.tokens"],
    [bad({ info: tokens("many" as unknown as number) }), "statistics.tokens"],
    [rewritten(good, "lengths"), "statistics.shape"],
    [rewritten(good, "mean"), "statistics.shape"],
    [rewritten(good, "palisade_statistics"), "statistics.format"],
    [rewritten(good, '{\\"format', "x"), "statistics.metadata"],
  ];
  for (const [i, [bytes, code]] of cases.entries()) {
    assert.throws(() => parseStatistics(bytes, "bad"), { code }, `case ${i}`);
  }
  const wider = { ...shape, headDim: shape.headDim / 2, heads: 2 * shape.heads };
  const other = parseStatistics(
    bad({ shape: wider, covariance: good.covariance.map(() => 1).slice(good.covariance.length / 2) }),
    "x",
  );
  assert.throws(() => checkStatistics(other, model.config, info.model.sha256), { code: "statistics.model" });
  const large = { ...bufferSource(new Uint8Array(8), "large"), size: 2 ** 32 };
  await assert.rejects(readStatistics(large, model.runtime), { code: "statistics.large" });
});

/** The file with a word of its header changed. */
function rewritten(statistics: Statistics, word: string, by = "z".repeat(word.length)): Uint8Array {
  const bytes = writeStatistics(statistics), text = new TextDecoder("latin1").decode(bytes), at = text.indexOf(word);
  assert.ok(at > 0, word);
  bytes.set(new TextEncoder().encode(by), at);
  return bytes;
}

Deno.test("whatever is damaged in a file of statistics, it is read or refused as input", async () => {
  await using model = await tinyModel("ts");
  const whole = writeStatistics(anyStatistics(model.config));
  holds(
    fc.property(fc.nat(4000), fc.nat(255), fc.boolean(), (at, value, cut) => {
      const bytes = cut ? whole.slice(0, at) : whole.slice();
      if (!cut) bytes[at] = value;
      try {
        const { mean, covariance, lengths } = parseStatistics(bytes, "damaged");
        for (const values of [mean, covariance, lengths]) assert.ok(values.every(Number.isFinite));
      } catch (error) {
        assert.ok(error instanceof PalisadeError && error.kind === "input", `${error}`);
      }
    }),
    500,
  );
});

Deno.test("a context that went by statistics comes back from its snapshot, and not with others", async () => {
  await using model = await tinyModel("wasm");
  const statistics = anyStatistics(model.config, await model.identity());
  const having = (each: Statistics): Model => ({ ...model, statistics: () => Promise.resolve(each) });
  const options = { policy: "triattention(statistics=calibrated)", keep: "40%" } as const;
  using context = await openContext(having(statistics), TEXT, options);
  const snapshot = bytesSource(await savedBytes(context));
  using again = await openContext(having(statistics), TEXT, { ...options, snapshot });
  assert.deepEqual([...again.cache.positions(1, 0)], [...context.cache.positions(1, 0)]);
  const others = having({ ...statistics, lengths: statistics.lengths.map((x) => x + 1) });
  await assert.rejects(openContext(others, TEXT, { ...options, snapshot }), { code: "snapshot.identity" });
});

Deno.test("statistics are asked for by name, and what was known before goes on meaning the same", async () => {
  for (const name of NAMES) {
    assert.equal(resolvePolicy(name).needs.file, undefined);
    assert.deepEqual(resolvePolicy(`${name}(statistics=x.st)`).needs.file, { kind: "statistics", name: "x.st" });
    assert.deepEqual(
      [name, `${name}(statistics=calibrated)`, `${name}(statistics=x.st)`].map((text) =>
        sharesPrefill(resolvePolicy(text))
      ),
      [true, true, false],
    );
  }
  for (const name of ["expected-attention", "qfilter"]) {
    assert.equal(resolvePolicy(name).parameters.statistics, undefined);
    assert.deepEqual(resolvePolicy(`${name}(statistics=context)`).parameters, resolvePolicy(name).parameters);
  }
  assert.equal(resolvePolicy("triattention").parameters.statistics, "context");
  assert.throws(() => resolvePolicy("expected-attention@reference(statistics=calibrated)"), {
    code: "policy.parameter",
  });
  await using model = await tinyModel("ts");
  using cache = new RaggedCache(model.backend, model.config);
  const { needs } = resolvePolicy("qfilter(statistics=calibrated)");
  await assert.rejects(LayerReader.open(model, cache, [1, 2], { needs, window: 1 }), RangeError);
});
