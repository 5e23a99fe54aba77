/** A gate that is fitted while reading: the regression, what the model repeats, and what is left for texts to come. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import type { CopiedRows } from "../../core/backend/interface.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { randomSource } from "../../core/measure/random.ts";
import { refitHead } from "../../core/refit/refit.ts";
import { project } from "../../model/dense/project.ts";
import { parseGate } from "../../model/gate/file.ts";
import { fitTowards } from "../../model/gate/fit/towards.ts";
import { designMatrix, FLOOR } from "../../model/gate/fit/layer.ts";
import { findLearned, learn, learnedPath, LEAST_LEARNED } from "../../model/gate/learned.ts";
import { keyTerms, ScaledTerms, termScale, termsOf } from "../../model/gate/key_terms.ts";
import { GateScorer, readGains } from "../../model/gate/scorer.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { policyInputs } from "../../model/read/policy_inputs.ts";
import { type LayerReferences, ofKvHead } from "../../model/read/references.ts";
import { type Piece, piecesOf, replayPieces } from "../../model/read/replay.ts";
import { openContext } from "../../model/session.ts";
import { contextIds, frameTokens } from "../../model/text/prompt.ts";
import { parseSafetensors } from "../../model/file/safetensors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { randomGate } from "../_helper/gate.ts";
import { assertClose } from "../_helper/close.ts";
import { engineOf } from "../_helper/host.ts";
import { palisade } from "../_helper/io.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ";

function pathOf(name: string): string {
  return fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
}

async function tiny(name: string, backend: "ts" | "wasm" = "wasm", runtime?: Runtime): Promise<Model> {
  return await loadModel(pathOf(name), runtime ?? await currentRuntime(), {
    dense: "web",
    backend,
    precision: "float32",
  });
}

/** A runtime whose cache folder is one of its own, removed afterwards. */
async function inFolder(body: (folder: string, runtime: Runtime) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "palisade-self-gate-")), real = await currentRuntime();
  const environment = (name: string) => name === "PALISADE_CACHE" ? folder : real.environment(name);
  try {
    await body(folder, Object.assign(Object.create(real) as Runtime, { environment }));
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** (A) x = b by Gauss–Jordan with pivoting. */
function naiveSolve(matrix: readonly (readonly number[])[], right: readonly number[]): number[] {
  const a = matrix.map((row, i) => [...row, right[i]]), n = a.length;
  for (let i = 0; i < n; i++) {
    const pivot = a.slice(i).reduce((best, row, j) => Math.abs(row[i]) > Math.abs(a[best][i]) ? i + j : best, i);
    [a[i], a[pivot]] = [a[pivot], a[i]];
    for (let j = 0; j < n; j++) {
      if (j === i) continue;
      const factor = a[j][i] / a[i][i];
      for (let k = i; k <= n; k++) a[j][k] -= factor * a[i][k];
    }
  }
  return a.map((row, i) => row[n] / row[i]);
}

for (const [rows, width] of [[40, 7], [7, 7], [5, 12]]) {
  for (const known of [0, rows, 100 * rows]) {
    Deno.test(`fitTowards() equals a naive solver for ${rows} rows of ${width}, ${known} rows known`, () => {
      const next = randomSource(rows + width), number = () => next() * 2 - 1;
      const x = Array.from(
        { length: rows },
        () => Array.from({ length: width }, (_, i) => i < width - 1 ? number() : 1),
      );
      const y = [0, 1].map((k) => x.map((row) => 3 * k + row[0] - row[1] + number() / 10));
      const before = [0, 1].map(() => Float64Array.from({ length: width }, number));
      const data = Float64Array.from({ length: width * rows }, (_, i) => x[i % rows][Math.floor(i / rows)]);
      const { weights: fitted, deviations } = fitTowards(
        { data, rows },
        Float64Array.from(y.flat()),
        known === 0 ? undefined : { weights: before, rows: known },
      );
      const gram = x[0].map((_, i) => x[0].map((_, j) => x.reduce((sum, row) => sum + row[i] * row[j], 0)));
      const mean = gram.reduce((sum, row, i) => sum + row[i], 0) / width;
      // Three tenths of the mean diagonal, four times that where much is known.
      const lambda = 0.3 * mean * Math.min(4, 1 + known / rows);
      const held = gram.map((row, i) => row.map((v, j) => i === j ? v + lambda : v));
      fitted.forEach((weights, k) => {
        const constant = y[k].reduce((a, b) => a + b, 0) / rows;
        const start = known > 0 ? [...before[k]] : x[0].map((_, i) => i === width - 1 ? constant : 0);
        const left = y[k].map((value, t) => value - x[t].reduce((sum, v, i) => sum + v * start[i], 0));
        const right = x[0].map((_, i) => x.reduce((sum, row, t) => sum + row[i] * left[t], 0));
        naiveSolve(held, right).forEach((w, i) => assert.ok(Math.abs(start[i] + w - weights[i]) < 1e-9, `${k}, ${i}`));
        const errors = y[k].map((value, t) => value - x[t].reduce((sum, v, i) => sum + v * weights[i], 0));
        const squares = errors.reduce((sum, error) => sum + error * error, 0);
        assert.ok(Math.abs(deviations[k] - Math.sqrt(squares / rows)) < 1e-9);
      });
    });
  }
}

Deno.test("fitTowards() refuses what does not fit and what is not finite", () => {
  const fit = (values: number[], y: number[]) => () =>
    fitTowards({ data: Float64Array.from(values), rows: 2 }, Float64Array.from(y), undefined);
  assert.throws(fit([1, 2, 3], [1, 2]), RangeError);
  assert.throws(fit([1, 2, 1, 1], [1, 2, 3]), RangeError);
  assert.throws(fit([NaN, 2, 1, 1], [1, 2]), /not finite/);
  assert.throws(() => fitTowards({ data: new Float64Array(0), rows: 0 }, new Float64Array(0), undefined), RangeError);
});

Deno.test("replayPieces() takes all of a short text, else whole chunks spread evenly over it", async () => {
  await using model = await tiny("llama-plain");
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(12));
  const spans = (tokens: number, chunk: number, length = ids.length) =>
    replayPieces(model, ids.slice(0, length), { tokens, chunk }).map(({ first, end }) => [first, end]);
  assert.deepEqual(spans(1024, 512, 90), [[0, 90]]);
  // The template's own words alone need no repetition.
  assert.ok(frameTokens(model, ids) >= 32 && frameTokens(model, ids) < 64);
  assert.deepEqual(spans(128, 32, 100), [[32, 64], [64, 96], [96, 100]]);
  // Of the chunks 1 to 5, the shorter seventh left out.
  assert.deepEqual(spans(64, 32, 200), [[64, 96], [128, 160]]);
  assert.deepEqual(spans(64, 32, 70), [[32, 64], [64, 70]], "too few others");
  for (const { first, end, ids: own } of replayPieces(model, ids, { tokens: 96, chunk: 24 })) {
    assert.deepEqual(own.slice(first - end), ids.slice(first, end));
  }
});

Deno.test("replayPieces() takes what has room behind it, and refuses where nothing has", async () => {
  await using model = await tiny("llama-plain");
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(12)).slice(0, 300);
  const shorter = { ...model, config: { ...model.config, contextLength: 310 } };
  const ends = replayPieces(shorter, ids, { tokens: 300, chunk: 60 }).map(({ end }) => end);
  assert.ok(ends.length > 0 && Math.max(...ends) + 60 <= 310, `${ends}`);
  assert.throws(() => replayPieces(shorter, ids, { tokens: 300, chunk: 300 }), {
    code: "context.too-long",
    message: /self-gate\(chunk=…\)/,
  });
  assert.equal(replayPieces(shorter, ids, { tokens: 300, chunk: 300 }, true).length, 1);
});

Deno.test("replayPieces() takes what a share of the reading's arithmetic pays for, more the longer the context", async () => {
  await using model = await tiny("llama-plain");
  const { width, heads, kvHeads, headDim, feedForward, layers } = model.config, row = heads * headDim, chunk = 24;
  const dense = 2 * width * row + 2 * width * kvHeads * headDim + 3 * width * feedForward;
  const work = (rows: number) => layers * (dense + 2 * row * rows);
  const ids = new Array<number>(3000).fill(7), counts: number[] = [];
  for (const length of [300, 1000, 3000]) {
    for (const from of [0, 500]) {
      const need = { tokens: 48, chunk, work: 0.3 };
      const pieces = replayPieces(model, ids.slice(0, length), need, true, from);
      const paid = Math.floor(0.3 * length * work(from + length / 2) / (chunk * work(1.5 * chunk)));
      assert.equal(pieces.length, Math.min(Math.max(2, paid), Math.ceil(length / chunk)), `${length} behind ${from}`);
      if (from === 0) counts.push(pieces.length / length);
    }
  }
  assert.ok(counts.slice(1).every((count, i) => count > counts[i]), counts.join(" "));
  assert.equal(replayPieces(model, ids, { tokens: 48, chunk, work: 0 }, true).length, 2);
});

Deno.test("piecesOf() has two short pieces repeated for a refit that would have no queries, where they have room", async () => {
  await using model = await tiny("qwen2-plain");
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(60)).slice(0, 1000), refit = "both";
  const pieces = piecesOf(model, ids, { needs: {}, refit })!;
  assert.deepEqual(pieces.map(({ first, end }) => [first, end]), [[320, 480], [640, 800]]);
  for (const without of [{ needs: {} }, { needs: {}, refit: "none" as const }]) {
    assert.equal(piecesOf(model, ids, without), undefined);
  }
  // What a policy has repeated serves its refit, too.
  assert.equal(piecesOf(model, ids, { needs: { reconstruction: { chunk: 512, postfix: 8 } }, refit }), undefined);
  const selfGate = { tokens: 300, chunk: 100 };
  assert.deepEqual(piecesOf(model, ids, { needs: { selfGate }, refit }), replayPieces(model, ids, selfGate));
  const short = { ...model, config: { ...model.config, contextLength: 170 } };
  assert.equal(piecesOf(short, ids, { needs: {}, refit }), undefined);
  assert.equal(piecesOf(short, ids, { needs: {}, refit }, true)!.length, 2);
});

Deno.test("a reading that refits behind a window policy asks the prompts' queries, and fits no gate", async () => {
  await using model = await tiny("llama-plain");
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(20)).slice(0, 400);
  const inputs = await policyInputs(model, { needs: {}, refit: "both" }, ids), { pieces } = inputs;
  assert.equal(pieces!.length, 2);
  using cache = new RaggedCache(model.backend, model.config);
  using reader = await LayerReader.open(model, cache, ids, { needs: {}, window: 0, referenceTokens: 40, ...inputs });
  const prompts = pieces!.flatMap((piece) => piece.ids).length;
  for (let layer = 0; layer < model.config.layers; layer++) {
    const { selfGate, references } = await reader.layer(layer);
    assert.equal(selfGate, undefined);
    const every = Math.ceil(prompts / 40);
    assert.equal(references!.tokens, pieces!.reduce((sum, piece) => sum + Math.ceil(piece.ids.length / every), 0));
  }
  assert.equal(reader.fitted(), undefined);
});

/** Scores of every layer, `[layers][kvHeads · L]`, as the reader gives them, and what was fitted. */
async function measured(
  model: Model,
  ids: readonly number[],
  tokens: number,
  chunk: number,
  referenceTokens = 0,
  beyondTrained = false,
) {
  using cache = new RaggedCache(model.backend, model.config);
  const needs = { selfGate: { tokens, chunk } };
  const inputs = await policyInputs(model, { needs }, ids, { learned: false, beyondTrained });
  using reader = await LayerReader.open(model, cache, ids, { needs, window: 0, referenceTokens, ...inputs });
  const layers: (Float32Array | undefined)[] = [], references: (LayerReferences | undefined)[] = [];
  const rows: CopiedRows[][] = [];
  for (let layer = 0; layer < model.config.layers; layer++) {
    const seen = await reader.layer(layer);
    layers.push(seen.selfGate);
    references.push(seen.references);
    rows.push(await copyHeads(cache.rows(layer)));
  }
  return { layers, references, rows, fitted: reader.fitted()! };
}

for (const backend of ["ts", "wasm"] as const) {
  Deno.test(`self-gate measures of a text that is repeated at once what kvzip measures, ${backend}`, async () => {
    await using model = await tiny("qwen2-plain", backend);
    const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(4)).slice(0, 90);
    const { layers, references, fitted } = await measured(model, ids, 1024, 512, 30);
    assert.deepEqual(fitted, { tokens: 0, known: 0, repeated: 90, of: 90 });
    using cache = new RaggedCache(model.backend, model.config);
    const needs = { reconstruction: { chunk: 512, postfix: 0 } };
    const inputs = await policyInputs(model, { needs }, ids);
    using reader = await LayerReader.open(model, cache, ids, { needs, window: 0, referenceTokens: 30, ...inputs });
    for (const [layer, scores] of layers.entries()) {
      const { reconstruction, references: theirs } = await reader.layer(layer);
      scores!.forEach((score, i) => assert.ok(Math.abs(Math.exp(score) - FLOOR - reconstruction![i]) < 1e-5));
      const { tokens, ...ours } = references[layer]!;
      assert.equal(tokens, theirs!.tokens);
      for (const part of ["queries", "outputs", "logSumExp"] as const) {
        assertClose(ours[part], theirs![part], 1e-4, `${part} of layer ${layer}`);
      }
    }
  });
}

Deno.test("a refit behind self-gate goes by the prompts' queries, asked over the whole context from behind its end", async () => {
  await using model = await tiny("llama-plain");
  const { config } = model, { layers, kvHeads, headDim } = config, dense = engineOf(model.dense);
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(4)).slice(0, 100), L = ids.length;
  const pieces = replayPieces(model, ids, { tokens: 48, chunk: 24 }), prompts = pieces.map((piece) => piece.ids);
  assert.ok(pieces.length === 2 && pieces.every(({ end }) => end < L));
  const { references, rows } = await measured(model, ids, 48, 24, 40);
  const every = Math.ceil(prompts.flat().length / 40), row = config.heads * headDim;
  // The first layer's queries are those of tokens that have seen nothing yet.
  const wanted = await Promise.all(prompts.map(async (own) => {
    const { queries } = project(config, 0, await dense.qkv(0, dense.embed(own), own.length), own.length, L);
    const sampled = own.map((_, t) => t).filter((t) => (own.length - 1 - t) % every === 0);
    return sampled.flatMap((t) => [...queries.subarray(t * row, (t + 1) * row)]);
  }));
  assertClose(references[0]!.queries, Float32Array.from(wanted.flat()), 1e-4, "queries of layer 0");
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < kvHeads; head++) {
      // Where every row is kept, the rows give what the context gave.
      const mine = ofKvHead(references[layer]!, config, head), options = { refit: "values", ridge: 1 } as const;
      const fitted = refitHead(rows[layer][head], mine, headDim, { ...options, defensive: false });
      assert.ok(fitted!.before < 1e-4, `layer ${layer} head ${head}: ${fitted!.before}`);
    }
  }
});

/** Largest attention of each piece's prompt, written out: a forward pass in which a prompt sees sinks, piece and itself. */
async function bruteForce(model: Model, ids: readonly number[], pieces: readonly Piece[]) {
  const { config } = model, dense = engineOf(model.dense);
  const { heads, kvHeads, headDim, layers } = config, L = ids.length, group = heads / kvHeads;
  const importance = Array.from({ length: layers }, () => pieces.map(() => new Float32Array(kvHeads * L)));
  for (const [p, { first, end, ids: own }] of pieces.entries()) {
    const all = [...ids, ...own], positions = all.map((_, t) => t < L ? t : end + t - L);
    const sees = (t: number, i: number) => t < L ? i <= t : i >= L ? i <= t : i < 4 || (i >= first && i < end);
    let hidden = dense.embed(all);
    for (let layer = 0; layer < layers; layer++) {
      const projected = await dense.qkv(layer, hidden, all.length);
      const [context, prompt] = [
        project(config, layer, projected, all.length, 0),
        project(
          config,
          layer,
          projected,
          all.length,
          end - L,
        ),
      ];
      const of = (t: number) => positions[t] === t && t < L ? context : prompt;
      const output = new Float32Array(all.length * heads * headDim);
      for (let h = 0; h < heads; h++) {
        const g = Math.floor(h / group);
        for (let t = 0; t < all.length; t++) {
          const seen = all.map((_, i) => i).filter((i) => i <= t && sees(t, i));
          const logits = seen.map((i) => {
            let dot = 0;
            for (let d = 0; d < headDim; d++) {
              dot += of(t).queries[(t * heads + h) * headDim + d] * of(i).keys[(i * kvHeads + g) * headDim + d];
            }
            return dot / Math.sqrt(headDim);
          });
          const top = Math.max(...logits), weights = logits.map((each) => Math.exp(each - top));
          const sum = weights.reduce((a, b) => a + b, 0);
          seen.forEach((i, at) => {
            const weight = weights[at] / sum;
            for (let d = 0; d < headDim; d++) {
              output[(t * heads + h) * headDim + d] += weight * context.values[(i * kvHeads + g) * headDim + d];
            }
            if (t < L || i >= L) return;
            importance[layer][p][g * L + i] = Math.max(importance[layer][p][g * L + i], weight);
          });
        }
      }
      hidden = await dense.finish(layer, hidden, output, all.length);
    }
  }
  return importance;
}

Deno.test("self-gate measures each piece as brute force does, and predicts the rest by the gate it fitted", async () => {
  await using model = await tiny("llama-plain");
  const { config: { layers, kvHeads } } = model;
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(4)).slice(0, 100), L = ids.length;
  const pieces = replayPieces(model, ids, { tokens: 48, chunk: 24 });
  const { layers: scores, fitted } = await measured(model, ids, 48, 24), theirs = await bruteForce(model, ids, pieces);
  assert.deepEqual([fitted.tokens, fitted.repeated, fitted.of], [48, 48, 100]);
  const scorer = new GateScorer(
    model.backend,
    model.config,
    fitted.gate!.keyed!,
    await readGains(model.file, model.config),
  );
  using cache = new RaggedCache(model.backend, model.config);
  const needs = { gate: true };
  using reader = await LayerReader.open(model, cache, ids, { needs, window: 0, gate: scorer });
  for (let layer = 0; layer < layers; layer++) {
    const predicted = (await reader.layer(layer)).gate!;
    const pieceOf = (i: number) => pieces.findIndex(({ first, end }) => i % L >= first && i % L < end);
    const measuredAt = (i: number) => Math.log(theirs[layer][pieceOf(i)][i] + FLOOR);
    const lifts = Array.from({ length: kvHeads }, (_, head) => {
      const rows = Array.from({ length: L }, (_, t) => head * L + t).filter((i) => pieceOf(i) >= 0);
      const squares = rows.reduce((sum, i) => sum + (measuredAt(i) - predicted[i]) ** 2, 0);
      return 0.75 * Math.sqrt(squares / rows.length);
    });
    for (let i = 0; i < kvHeads * L; i++) {
      const wanted = pieceOf(i) < 0 ? predicted[i] + lifts[Math.floor(i / L)] : measuredAt(i);
      assert.ok(Math.abs(scores[layer]![i] - wanted) < 1e-3, `layer ${layer}, ${i}: ${scores[layer]![i]}, ${wanted}`);
    }
  }
});

Deno.test("self-gate fits on one in so many of what a long text repeats", async () => {
  await using model = await tiny("llama-plain");
  const { config } = model, { width, kvHeads, layers } = config, chunk = 100;
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(150)).slice(0, 2600), L = ids.length;
  const pieces = replayPieces(model, ids, { tokens: 2200, chunk }, true);
  const { layers: scores, fitted } = await measured(model, ids, 2200, chunk, 0, true);
  assert.deepEqual([fitted.repeated, fitted.tokens], [2200, 1100]);
  const hidden = Array.from({ length: layers }, () => new Float32Array(L * width)), { tensors } = model.backend;
  using cache = new RaggedCache(model.backend, config);
  const onInput = async (layer: number, chunk: Tensor, first: number) => {
    hidden[layer].set(await tensors.read(chunk), first * width);
  };
  using reader = await LayerReader.open(model, cache, ids, { needs: {}, window: 0, onInput });
  const gains = await readGains(model.file, config), rows = pieces.flatMap(({ first, end }) => range(first, end));
  const taken = rows.filter((_, i) => i % 2 === 0), count = taken.length;
  for (let layer = 0; layer < layers; layer++) {
    reader.release(await reader.layer(layer));
    const all = await keyTerms({ rows: cache.rows(layer), rope: config.ropes[layer] }, L);
    const of = {
      terms: Float32Array.from(range(0, all.length / L).flatMap((i) => taken.map((t) => all[i * L + t]))),
      hidden: Float32Array.from(taken.flatMap((t) => [...hidden[layer].subarray(t * width, (t + 1) * width)])),
      importance: new Float32Array(0),
      tokens: count,
    };
    const mine = gains.subarray(layer * width, (layer + 1) * width), scaled = new ScaledTerms(all, L, termScale(mine));
    const x = designMatrix(of, mine, config, { skipped: 0, scaled: scaled.of });
    const y = Float64Array.from(range(0, kvHeads).flatMap((g) => taken.map((t) => scores[layer]![g * L + t])));
    fitTowards(x, y, undefined).weights.forEach((each, head) => {
      const from = (layer * kvHeads + head) * width, theirs = fitted.gate!.weights.subarray(from, from + width);
      assertClose(theirs, Float32Array.from(each.subarray(0, width)), 1e-3, `layer ${layer} head ${head}`);
      const count = all.length / L, at = (layer * kvHeads + head) * count;
      const plain = scaled.leave(each.subarray(width, -1), each[width + count]);
      const terms = Float32Array.from(plain.weights);
      assert.ok(Math.abs(fitted.gate!.keyed!.bias[layer * kvHeads + head] - plain.constant) < 1e-2);
      assertClose(fitted.gate!.keyed!.terms.subarray(at, at + count), terms, 1e-3, `terms, ${layer}, ${head}`);
    });
  }
});

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

Deno.test("self-gate scores the global layers alone of a model with window layers", async () => {
  await using model = await tiny("gemma3-windows");
  const ids = contextIds(model.frame, model.tokenizer, TEXT.repeat(12)).slice(0, 400);
  const { layers, fitted } = await measured(model, ids, 128, 64);
  const { windows } = model.config;
  layers.forEach((scores, layer) => assert.equal(scores === undefined, (windows[layer] ?? 0) > 0, `${layer}`));
  assert.ok(layers.every((scores) => scores?.every(Number.isFinite) ?? true));
  assert.equal(fitted.repeated, 128);
});

Deno.test("openContext() with self-gate says what the gate was fitted on, and keeps nothing unless asked", async () => {
  await inFolder(async (folder, runtime) => {
    await using model = await tiny("llama-plain", "wasm", runtime);
    const options = { policy: "self-gate(tokens=64, chunk=32)", keep: "20%" };
    using context = await openContext(model, TEXT.repeat(8), options);
    assert.equal(context.cache.entries(), context.budget.total);
    const { tokens, known, repeated, stored } = context.selfGate!;
    assert.deepEqual({ tokens, known, repeated, stored }, { tokens: 64, known: 0, repeated: 64, stored: false });
    const gate = randomGate(model.config);
    using begun = await openContext(model, TEXT.repeat(8), { ...options, gate });
    assert.equal(begun.selfGate!.known, gate.info.calibration.tokens);
    using whole = await openContext(model, TEXT, { ...options, policy: "self-gate" });
    assert.deepEqual([whole.selfGate!.tokens, whole.selfGate!.stored], [0, false]);
    assert.deepEqual(await readdir(folder), []);
  });
});

Deno.test("what is learned is a gate and nothing else, of 1,000 tokens or more, its owner's alone", async () => {
  await inFolder(async (_, runtime) => {
    await using model = await tiny("llama-plain", "wasm", runtime);
    const text = TEXT.repeat(60), path = learnedPath(runtime, await model.identity());
    // What is replayed falls short of the least: nothing is left.
    for (const tokens of [64, LEAST_LEARNED - 40]) {
      const policy = `self-gate(tokens=${tokens}, chunk=32)`;
      using few = await openContext(model, text, { policy, keep: "20%", learn: true });
      assert.ok(few.selfGate!.tokens > 0 && few.selfGate!.tokens < LEAST_LEARNED, `${few.selfGate!.tokens}`);
      assert.ok(!few.selfGate!.stored && /fewer than 1000/.test(few.selfGate!.why));
      await assert.rejects(stat(path), "nothing was left");
    }
    const gate = { weights: new Float32Array(0), bias: new Float32Array(0) };
    assert.equal((await learn(model, { gate, tokens: LEAST_LEARNED - 1, known: 1e6 })).stored, false);
    using first = await openContext(model, text, { policy: "self-gate", keep: "20%", learn: true });
    assert.deepEqual([first.selfGate!.stored, first.selfGate!.known], [true, 0]);
    assert.ok(first.selfGate!.tokens >= LEAST_LEARNED);
    const bytes = new Uint8Array(await readFile(path)), { info } = parseGate(bytes, "x");
    const { layers, kvHeads, width } = model.config;
    assert.deepEqual([...parseSafetensors(bytes, "x").tensors].map(([name, { shape }]) => [name, shape]), [
      ["bias", [layers, kvHeads]],
      ["weight", [layers, kvHeads, width]],
      ["keyed.bias", [layers, kvHeads]],
      ["keyed.weight", [layers, kvHeads, width]],
      ["keyed.terms", [layers, kvHeads, termsOf(model.config)]],
    ]);
    assert.deepEqual([info.calibration.tokens, info.calibration.texts], [first.selfGate!.tokens, [
      "texts that were read",
    ]]);
    if (runtime.platform.startsWith("linux")) assert.equal((await stat(path)).mode & 0o777, 0o600);
    // The next text begins with it, and adds to it.
    using second = await openContext(model, text, { policy: "self-gate", keep: "20%", learn: true });
    assert.deepEqual([second.selfGate!.known, second.selfGate!.stored], [first.selfGate!.tokens, true]);
    const { info: after } = parseGate(new Uint8Array(await readFile(path)), "x");
    assert.equal(after.calibration.tokens, first.selfGate!.tokens + second.selfGate!.tokens);
    // One that began with something else takes nobody's place.
    using other = await openContext(model, text, { policy: "self-gate", keep: "20%", learn: true, learned: false });
    assert.ok(!other.selfGate!.stored && /something else/.test(other.selfGate!.why));
  });
});

Deno.test("findLearned() passes over what is damaged or another model's; learn() survives a place it can't write to", async () => {
  await inFolder(async (folder, runtime) => {
    await using model = await tiny("llama-plain", "wasm", runtime);
    const path = learnedPath(runtime, await model.identity()), gate = randomGate(model.config);
    assert.equal(await findLearned(model), undefined);
    assert.ok((await learn(model, { gate, tokens: 2000, known: 0 })).stored);
    assert.equal((await findLearned(model))!.info.calibration.tokens, 2000);
    await using other = await tiny("qwen2-plain", "wasm", runtime);
    assert.equal(await findLearned(other), undefined);
    const bytes = await readFile(path);
    for (const length of [0, 7, 100, bytes.length - 1]) {
      await writeFile(path, bytes.subarray(0, length));
      assert.equal(await findLearned(model), undefined, `${length} bytes`);
    }
    // What is damaged is replaced.
    assert.ok((await learn(model, { gate, tokens: 3000, known: 0 })).stored);
    await rm(path);
    await mkdir(path);
    const failed = await learn(model, { gate, tokens: 3000, known: 0 });
    assert.equal(failed.stored, false);
    assert.equal(await findLearned({ ...model, runtime: { ...runtime, host: undefined } }), undefined);
    const browser = {
      config: model.config,
      identity: () => model.identity(),
      runtime: { ...runtime, host: undefined },
    };
    assert.equal((await learn(browser, { gate, tokens: 3000, known: 0 })).stored, false);
    await rm(join(folder, "gates"), { recursive: true });
    await writeFile(join(folder, "gates"), "no folder");
    assert.equal((await learn(model, { gate, tokens: 3000, known: 0 })).stored, false);
  });
});

Deno.test("ask --policy self-gate learns, unless it is told not to", async () => {
  await inFolder(async (folder, runtime) => {
    const context = join(folder, "text.txt");
    await writeFile(context, TEXT.repeat(60));
    const ask = ["ask", "--model", pathOf("llama-plain"), "--context", context, "--question", "How many stakes?"];
    const told = ["--policy", "self-gate", "--keep", "20%", "--max-tokens", "2", "--dense", "web", "--backend", "wasm"];
    const run = async (...more: string[]) => {
      const { code, out, err } = await palisade([...ask, ...told, ...more], { runtime });
      assert.equal(code, 0, err);
      return out;
    };
    const { selfGate } = JSON.parse(await run("--json", "--no-learn"));
    assert.deepEqual([selfGate.known, selfGate.stored, selfGate.why], [0, false, "nobody asked for it"]);
    await assert.rejects(stat(join(folder, "gates")), "nothing is left");
    const learned = JSON.parse(await run("--json")).selfGate;
    assert.deepEqual([learned.known, learned.stored, learned.why], [0, true, null]);
    const shown = await palisade([...ask, ...told, "--no-learn"], { runtime, interactive: true });
    assert.match(shown.err, /gate {5}fitted on 1,\d{3} tokens of the text, begun with one of 1,\d{3} tokens;/);
    assert.match(shown.err, /not kept: nobody asked for it/);
  });
});
