/** Calibration: the regression against a naive solver, the text, and going on where a run was stopped. */
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { randomSource } from "../../core/measure/random.ts";
import { calibrate } from "../../model/gate/fit/calibrate.ts";
import { termsOf } from "../../model/gate/key_terms.ts";
import { designMatrix, LayerCalibration, targetsOf } from "../../model/gate/fit/layer.ts";
import { type CalibrationPlan, planCalibration } from "../../model/gate/fit/plan.ts";
import { fitRidge, NormalEquations, RIDGES, solveRidge } from "../../model/gate/fit/ridge.ts";
import { Draw, KINDS, mixedText, passage } from "../../model/gate/fit/text.ts";
import { loadGate } from "../../model/gate/find.ts";
import { parseGate, writeGate } from "../../model/gate/file.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { palisade } from "../_helper/io.ts";
import { openTiny } from "../_helper/tiny_models.ts";

async function tiny(name = "qwen2-plain"): Promise<Model> {
  const path = fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
  return await loadModel(path, await currentRuntime(), { dense: "web", backend: "wasm", precision: "float32" });
}

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "palisade-calibrate-"));
  try {
    await body(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Solves A x = b by Gauss–Jordan with pivoting, `[n][n]`. */
function naiveSolve(matrix: number[][], right: number[]): number[] {
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

/** Random rows with a constant last column, and targets; `[rows][width]`, `[targets][rows]`. */
function problem(rows: number, width: number, targets: number, seed: number) {
  const next = randomSource(seed);
  const x = Array.from(
    { length: rows },
    () => Array.from({ length: width }, (_, i) => i === width - 1 ? 1 : next() * 2 - 1),
  );
  const y = Array.from({ length: targets }, () => x.map((row) => row[0] * 3 - (row[2] ?? 0) + next() * 0.1));
  return { x, y };
}

function equationsOf({ x, y }: ReturnType<typeof problem>, chunk: number): NormalEquations {
  const width = x[0].length, equations = new NormalEquations(width, y.length);
  for (let first = 0; first < x.length; first += chunk) {
    const part = x.slice(first, first + chunk), rows = part.length;
    const data = Float64Array.from({ length: width * rows }, (_, i) => part[i % rows][Math.floor(i / rows)]);
    equations.add({ data, rows }, Float64Array.from(y.flatMap((each) => each.slice(first, first + rows))));
  }
  return equations;
}

for (const width of [1, 2, 3, 4, 5, 8, 11, 17]) {
  Deno.test(`solveRidge() equals a naive solver for ${width} columns, whatever the chunks`, () => {
    const each = problem(40, width, 2, width), ridge = 0.05;
    const gram = each.x[0].map((_, i) =>
      each.x[0].map((_, j) => each.x.reduce((sum, row) => sum + row[i] * row[j], 0))
    );
    const lambda = ridge * gram.reduce((sum, row, i) => sum + row[i], 0) / width;
    const shrunk = gram.map((row, i) => row.map((v, j) => v + (i === j && i < width - 1 ? lambda : 0)));
    for (const chunk of [1, 7, 40]) {
      const equations = equationsOf(each, chunk);
      assert.equal(equations.rows, 40);
      solveRidge(equations, ridge).forEach((weights, k) => {
        const right = each.x[0].map((_, i) => each.x.reduce((sum, row, t) => sum + row[i] * each.y[k][t], 0));
        naiveSolve(shrunk, right).forEach((w, i) => assert.ok(Math.abs(w - weights[i]) < 1e-9));
        const error = each.x.reduce(
          (sum, row, t) => sum + (each.y[k][t] - row.reduce((s, v, i) => s + v * weights[i], 0)) ** 2,
          0,
        );
        assert.ok(Math.abs(error - equations.squaredError(k, weights)) < 1e-9 * (1 + error));
      });
    }
  });
}

Deno.test("fitRidge() takes the ridge with the smallest held-out error and fits on both parts", () => {
  const [a, b] = [problem(30, 6, 2, 1), problem(15, 6, 2, 2)];
  const errors = RIDGES.map((ridge) => {
    const held = equationsOf(b, 15);
    return solveRidge(equationsOf(a, 30), ridge).reduce((sum, w, k) => sum + held.squaredError(k, w), 0);
  });
  const { ridge, weights } = fitRidge(equationsOf(a, 30), equationsOf(b, 15));
  assert.equal(ridge, RIDGES[errors.indexOf(Math.min(...errors))]);
  const both = equationsOf({ x: [...a.x, ...b.x], y: a.y.map((each, k) => [...each, ...b.y[k]]) }, 9);
  solveRidge(both, ridge).forEach((w, k) => w.forEach((v, i) => assert.ok(Math.abs(v - weights[k][i]) < 1e-9)));
});

Deno.test("solveRidge() refuses what has no solution, add() what does not fit", () => {
  assert.throws(() => solveRidge(new NormalEquations(3, 1), 0.1), /Cannot solve/);
  const add = () => new NormalEquations(3, 1).add({ data: new Float64Array(6), rows: 3 }, new Float64Array(3));
  assert.throws(add, RangeError);
});

Deno.test("LayerCalibration recovers a linear gate and its largest surprise", async () => {
  await using model = await openTiny("qwen2-plain");
  const { config } = model, { width, kvHeads } = config, next = randomSource(9);
  const gains = new Float32Array(width).fill(1);
  const truth = Array.from({ length: kvHeads }, () => Array.from({ length: width }, () => (next() - 0.5) / 8));
  const text = (tokens: number, surprise = 0) => {
    const hidden = Float32Array.from({ length: tokens * width }, () => next() * 2 - 1);
    const { data, rows } = designMatrix({ hidden, tokens, importance: new Float32Array(0) }, gains, config);
    const importance = new Float32Array(kvHeads * tokens).fill(1);
    truth.forEach((w, g) => {
      for (let t = 0; t < rows; t++) {
        const log = w.reduce((sum, v, i) => sum + v * data[i * rows + t], -3);
        importance[g * tokens + 4 + t] = Math.exp(log + (t === 1 && g === 0 ? surprise : 0));
      }
    });
    return { hidden, importance, tokens };
  };
  const layer = new LayerCalibration(config, gains, false);
  for (let i = 0; i < 10; i++) layer.add(text(100));
  layer.fit();
  layer.check(text(60), "heldOut");
  layer.check(text(60, 2), "heldOut");
  layer.check(text(60, 1), "shifted");
  const { correlation, worst, ridge } = layer.result();
  assert.ok(correlation.every((each) => each > 0.8), String(correlation));
  assert.equal(ridge, RIDGES[0]);
  const [plain, surprising] = worst.heldOut;
  assert.ok(plain < 0.3 && Math.abs(surprising - 2) < 0.3 && Math.abs(worst.shifted[0] - 1) < 0.3);
  assert.equal(targetsOf(text(4), kvHeads).length, 0, "a text of protected tokens only has no rows");
});

Deno.test("LayerCalibration finds what keys say beside hidden states, and what these say alone", async () => {
  await using model = await openTiny("qwen2-plain");
  const { config } = model, { width, kvHeads } = config, next = randomSource(9), count = termsOf(config);
  const gains = new Float32Array(width).fill(1), tokens = 100;
  const truth = Array.from({ length: kvHeads }, () => Array.from({ length: count }, () => next() - 0.5));
  const text = () => {
    const hidden = Float32Array.from({ length: tokens * width }, () => next() * 2 - 1);
    const terms = Float32Array.from({ length: count * tokens }, () => 2 * next());
    const importance = Float32Array.from({ length: kvHeads * tokens }, (_, i) => {
      const at = i % tokens, by = truth[Math.floor(i / tokens)];
      return Math.exp(by.reduce((sum, weight, j) => sum + weight * terms[j * tokens + at], -6));
    });
    return { hidden, importance, tokens, terms };
  };
  const [plain, keyed] = [new LayerCalibration(config, gains, false), new LayerCalibration(config, gains, true)];
  for (let i = 0; i < 10; i++) {
    const each = text();
    keyed.add(each);
    plain.add({ ...each, terms: undefined });
  }
  const heldOut = text();
  for (const [layer, of] of [[plain, { ...heldOut, terms: undefined }], [keyed, heldOut]] as const) {
    layer.fit();
    layer.check(of, "heldOut");
  }
  const [without, fitted] = [plain.result(), keyed.result()];
  assert.equal(without.keyed, undefined);
  assert.deepEqual([fitted.weights, fitted.bias, fitted.worst], [without.weights, without.bias, without.worst]);
  assert.ok(fitted.correlation.every((each) => each > 0.98), String(fitted.correlation));
  assert.ok(without.correlation.every((each) => each < 0.6), String(without.correlation));
  fitted.keyed!.terms.forEach((terms, head) => {
    terms.forEach((weight, i) => assert.ok(Math.abs(weight - truth[head][i]) < 0.1, `${head}, ${i}: ${weight}`));
  });
});

Deno.test("passage() makes each kind from its seed, without the evaluation's wording", () => {
  for (const kind of [...KINDS, "log"] as const) {
    const texts = [1, 2, 3].map((seed) => passage(kind, new Draw(seed)));
    assert.equal(passage(kind, new Draw(1)), texts[0]);
    assert.notEqual(texts[0], texts[1]);
    for (const text of texts) {
      assert.ok(text.length > 60, `${kind}: ${text}`);
      assert.doesNotMatch(text, /undefined|NaN/);
      assert.doesNotMatch(text, /magic|special|VAR |hidden within/i);
    }
  }
  assert.match(passage("json", new Draw(4)), /^\[/);
  const prose = ["One.", "Two.", "Three.", "Four.", "Five.", "Six.", "Seven."];
  assert.ok([...Array(20).keys()].some((seed) => /Two\. Three\./.test(passage("prose", new Draw(seed), prose))));
  assert.ok(mixedText(new Draw(1), KINDS, 3000, prose).length >= 3000);
  assert.throws(() => new Draw(1).fill("{nothing}"), RangeError);
});

Deno.test("planCalibration() makes disjoint texts of the lengths asked for, half of them the user's", async () => {
  await using model = await tiny();
  const runtime = await currentRuntime();
  const plan = await planCalibration(model, runtime, { tokens: 1500, seed: 3 });
  assert.ok(plan.fit.reduce((sum, ids) => sum + ids.length, 0) >= 1500);
  assert.deepEqual([plan.heldOut.length, plan.shifted.length], [40, 10]);
  const all = [...plan.fit, ...plan.heldOut, ...plan.shifted].map((ids) => ids.join());
  assert.equal(new Set(all).size, all.length);
  assert.deepEqual(await planCalibration(model, runtime, { tokens: 1500, seed: 3 }), plan);
  const text = "Seven herons crossed the frozen canal before the ferry came. ".repeat(150);
  const own = await planCalibration(model, runtime, { tokens: 1500, seed: 3, texts: [{ name: "herons.txt", text }] });
  assert.match(own.sources[1], /herons\.txt/);
  assert.match(model.tokenizer.decode(own.fit[1]), /herons/);
  assert.doesNotMatch(model.tokenizer.decode(own.fit[0]), /herons/);
  const refused = async (options: Parameters<typeof planCalibration>[2]) => {
    const error = await planCalibration(model, runtime, options).then(() => undefined, (reason) => reason);
    assert.ok(error instanceof PalisadeError);
    return error.code;
  };
  assert.equal(await refused({ tokens: 999, seed: 1 }), "calibrate.tokens");
  assert.equal(await refused({ tokens: 1500, seed: 1, texts: [{ name: "x", text: "short" }] }), "calibrate.text");
});

/** A plan small enough for a test of the whole. */
async function smallPlan(model: Model): Promise<CalibrationPlan> {
  const plan = await planCalibration(model, await currentRuntime(), { tokens: 1000, seed: 2 });
  return {
    ...plan,
    heldOut: plan.heldOut.slice(0, 12).map((ids) => ids.slice(0, 60)),
    shifted: plan.shifted.slice(0, 2),
  };
}

Deno.test("calibrate() stopped in the middle goes on and writes the same gate to the last bit", async () => {
  await inFolder(async (folder) => {
    await using model = await tiny();
    const runtime = await currentRuntime(), plan = await smallPlan(model), sha256 = "c".repeat(64);
    const statePath = join(folder, "x.state");
    const whole = await calibrate(model, runtime, plan, { sha256 });
    const texts = plan.fit.length + plan.heldOut.length + plan.shifted.length;
    const controller = new AbortController();
    const stopped = calibrate(model, runtime, plan, {
      sha256,
      statePath,
      saveEveryMs: 0,
      signal: controller.signal,
      onProgress: (done) => done === texts + 3 && controller.abort(),
    });
    await assert.rejects(stopped, { name: "AbortError" });
    assert.equal(model.backend.memory().allocatedBytes, 0);
    assert.deepEqual(await readdir(folder), ["x.state"]);
    const progress: number[] = [];
    const goOn = () =>
      calibrate(model, runtime, plan, { sha256, statePath, onProgress: (done) => progress.push(done) });
    const resumed = await goOn();
    assert.equal(progress[0], texts + 1, "the first layer is not done again");
    assert.deepEqual(resumed, whole);
    assert.deepEqual(writeGate(resumed.info, resumed.gate), writeGate(whole.info, whole.gate));
    parseGate(writeGate(whole.info, whole.gate), "x");
    const state = await readFile(statePath);
    for (const broken of [state.subarray(0, 4), state.subarray(0, state.length - 4), new Uint8Array(64).fill(7)]) {
      await writeFile(statePath, broken);
      progress.length = 0;
      assert.deepEqual(await goOn(), whole);
      assert.equal(progress[0], 1, "a damaged state is not gone on from");
    }
    await writeFile(statePath, state);
    progress.length = 0;
    await calibrate(model, runtime, plan, {
      sha256: "d".repeat(64),
      statePath,
      onProgress: (done) => progress.push(done),
    });
    assert.equal(progress[0], 1, "another model's state is not gone on from");
  });
});

for (const architecture of ["llama-plain", "qwen2-plain"]) {
  Deno.test(`palisade calibrate of ${architecture} writes a gate that ask uses, and nothing else`, async () => {
    await inFolder(async (folder) => {
      const out = join(folder, "mine.gate.safetensors"), book = join(folder, "book.txt");
      const path = fileURLToPath(new URL(`../data/models/${architecture}.gguf`, import.meta.url));
      const engine = ["--model", path, "--dense", "web", "--threads", "1"];
      const command = (kinds: string) =>
        palisade(["calibrate", ...engine, "--tokens", "1000", "--kinds", kinds, "--out", out]);
      const { code, out: printed, err } = await command("prose, json");
      assert.equal(code, 0, err);
      assert.match(printed, /coverage promised.*texts of another kind \(logs\)[\s\S]*80\.0 %[\s\S]*95\.0 %/);
      assert.match(printed, /wrote .*mine\.gate/);
      assert.deepEqual(await readdir(folder), ["mine.gate.safetensors"]);
      const gate = await loadGate(out, await currentRuntime());
      assert.match(gate.info.calibration.texts[0], /prose, json/);

      await writeFile(book, "The gate was shut, and nobody counted the stakes before the ferry came. ".repeat(12));
      const ask = (...more: string[]) =>
        palisade([
          "ask",
          ...engine,
          "--context",
          book,
          "--question",
          "Who?",
          "--gate",
          out,
          "--max-tokens",
          "3",
          ...more,
        ]);
      for (const policy of ["gate", "gate(read=stream)"]) {
        const asked = await ask("--policy", policy, "--keep", "25%", "--json");
        assert.equal(asked.code, 0, asked.err);
        const { cache, keep } = JSON.parse(asked.out), heads = cache.perLayer.length * cache.perLayer[0].heads.length;
        assert.ok(cache.kept >= keep.tokensPerHead * heads && cache.kept < (keep.tokensPerHead + 1) * heads);
      }
      const capped = await ask("--policy", "snapkv", "--max-cache", "80", "--step-policy", "gate", "--json");
      assert.equal(JSON.parse(capped.out).maxCache?.rule, "gate", capped.err);
      const idle = await ask("--keep", "25%", "--max-cache", "80", "--policy", "snapkv");
      assert.deepEqual([idle.code, idle.out], [2, ""]);
      assert.match(idle.err, /--gate.*--policy gate or --step-policy gate/);
      const worst = await ask("--policy", "gate(coverage=0.8)", "--risk-worst", "0.9", "--json");
      const { risk } = JSON.parse(worst.out);
      assert.deepEqual([risk.kind, risk.asked, risk.worstCase.coverage, risk.worstCase.texts], ["worst", 0.9, 0.8, 40]);
      assert.ok(Math.abs(risk.worstCase.threshold - Math.log(0.9) + risk.worstCase.margin) < 1e-12);
      const told = ["ask", ...engine, "--context", book, "--question", "Who?", "--gate", out, "--max-tokens", "3"];
      const shown = await palisade([...told, "--policy", "gate", "--risk-worst", "0.9"], { interactive: true });
      assert.match(
        shown.err,
        /^risk +evicted what scores below -\d+\.\d\d: nothing of importance 0\.9 or more, in 90\.0 %/m,
      );
      assert.match(shown.err, /like the 40 held out \(this one is longer than their 192 tokens: no promise\)/);
      const bold = await ask("--policy", "gate(coverage=0.99)", "--risk-worst", "0.9");
      assert.deepEqual([bold.code, bold.out], [3, ""]);
      assert.match(bold.err, /40 held-out texts can't promise 0\.99: want gate\(coverage=0\.975\)/);
    });
  });
}

Deno.test("palisade calibrate refuses a kind of text that there is not", async () => {
  await inFolder(async (folder) => {
    const path = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
    const bad = await palisade(["calibrate", "--model", path, "--kinds", "prose,poems", "--out", join(folder, "x")]);
    assert.deepEqual([bad.code, bad.out], [3, ""]);
    assert.match(bad.err, /--kinds: Unknown kind of text "poems"/);
  });
});
