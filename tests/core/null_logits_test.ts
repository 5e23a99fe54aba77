/** Logits for nothing: every backend's attention, and what is proved or fitted from it. */
import assert from "node:assert/strict";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { attendUnmasked } from "../../core/backend/unmasked.ts";
import { HOST_TENSORS } from "../../core/backend/tensor.ts";
import { randomSource } from "../../core/measure/random.ts";
import { refitHead } from "../../core/refit/refit.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { evictedMass } from "../../core/worst_case/certificate.ts";
import { largestMasses } from "../../core/worst_case/risk_budget.ts";
import { REDUCTIONS } from "../../wasm/rows.ts";
import { KERNEL_BACKENDS } from "../_helper/backends.ts";
import { assertClose } from "../_helper/close.ts";
import { filled, sameDecode, sameObservation, samePrefill } from "../_helper/parity.ts";

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => 3 * (next() - 0.5));
}

/** From hardly anything to nearly all of a row. */
function nullLogits(heads: number): Float32Array {
  return Float32Array.from({ length: heads }, (_, h) => [-30, -1, 2, 9, 40][h % 5]);
}

const SHAPES: readonly AttentionShape[] = [
  { heads: 6, kvHeads: 2, headDim: 64 },
  { heads: 5, kvHeads: 5, headDim: 20 },
  { heads: 6, kvHeads: 3, headDim: 32, reach: 40 },
].map((shape) => ({ ...shape, nullLogits: nullLogits(shape.heads) }));

for (const { name, start, oneType } of KERNEL_BACKENDS) {
  for (const type of oneType ? ["f32"] as const : ["f32", "f16", "int8"] as const) {
    Deno.test(`${name}, ${type}: what goes to nothing equals the plain backend's, whatever is asked`, async () => {
      using oracle = createReferenceBackend();
      using backend = await start();
      const pair = { oracle, backend, type };
      for (const shape of SHAPES) {
        const each = shape.heads * shape.headDim;
        for (const length of [1, 65, 130]) {
          using twins = filled(pair, shape, length);
          for (const count of new Set([1, Math.ceil(length / 3), length])) {
            const queries = floats(count * each, 3), what = `${shape.heads} heads, ${count} of ${length}`;
            await samePrefill(twins, queries, count, what);
            await sameDecode(twins, queries, count, what);
            await sameObservation(twins, queries, count, { window: REDUCTIONS }, what);
            const wanted = { columnSum: true, columnMax: true, logSumExp: true };
            const [want, got] = await Promise.all([twins.want, twins.got].map((rows) => {
              return attendUnmasked(HOST_TENSORS, rows, queries, count, wanted);
            }));
            for (const part of ["output", "columnSum", "columnMax", "logSumExp"] as const) {
              assertClose(got[part]!, want[part]!, 1e-5, `${what}, unmasked: ${part}`);
            }
          }
          const copies = await Promise.all([twins.want.clone(), twins.got.clone()]);
          const [want, got] = await Promise.all(copies.map((rows) => rows.decodeAttention(floats(each, 4), 1)));
          assertClose(got.output, want.output, 2e-4, `a copy of ${length} rows`);
          copies.forEach((rows) => rows.free());
        }
      }
    });
  }

  Deno.test(`${name}: what goes to nothing stays where keys are thin or foreseen`, async () => {
    using oracle = createReferenceBackend();
    using backend = await start();
    const shape = SHAPES[0], queries = floats(2 * 6 * 64, 5), channels = Int32Array.from({ length: 40 }, (_, i) => i);
    using thin = filled({ oracle, backend, type: "f32" }, shape, 100);
    for (const rows of [thin.want, thin.got]) [0, 1].forEach((h) => rows.thin!(h, { channels, recent: [0, 30][h] }));
    await sameDecode(thin, queries, 2, "thin");
    await sameDecode(thin, queries.subarray(6 * 64), 1, "thin, one query");
    using foreseen = filled({ oracle, backend, type: "f32" }, shape, 100);
    for (const rows of [foreseen.want, foreseen.got]) {
      [0, 1].forEach((h) => rows.foresee!(h, { channels, entries: 50, sinks: 4, recent: 8 }));
    }
    const one = queries.subarray(0, 6 * 64);
    const [want, got] = await Promise.all([foreseen.want, foreseen.got].map((rows) => rows.decodeAttention(one, 1)));
    assertClose(got.output, want.output, 1e-5, "foreseen");
  });
}

Deno.test("what goes to nothing is one entry more, whose value is 0", async () => {
  using backend = createReferenceBackend();
  const shape = { heads: 3, kvHeads: 1, headDim: 8 }, nulls = Float32Array.of(-1, 0.5, 3), length = 20;
  const given = backend.createRows({ ...shape, nullLogits: nulls }, 0), plain = backend.createRows(shape, 0);
  const [keys, values, queries] = [floats(length * 8, 1), floats(length * 8, 2), floats(length * 24, 3)];
  for (const rows of [given, plain]) rows.append(keys, values, length);
  const asked = { logSumExp: true, columnSum: true };
  const got = await given.prefillAttention(queries, length, asked);
  const without = await plain.prefillAttention(queries, length, asked);
  const share = without.logSumExp!.map((sum, i) => 1 / (1 + Math.exp(nulls[i % 3] - sum)));
  assertClose(got.output, without.output.map((x, i) => x * share[Math.floor(i / 8)]), 1e-6, "output");
  const sums = without.logSumExp!.map((sum, i) => sum - Math.log(share[i]));
  assertClose(got.logSumExp!, sums, 1e-6, "log-sum-exp");
  const mass = (columns: Float32Array) => columns.reduce((sum, x) => sum + x, 0);
  assert.ok(Math.abs(mass(got.columnSum!) - share.reduce((sum, x) => sum + x, 0)) < 1e-4);
  assert.ok(mass(got.columnSum!) < mass(without.columnSum!) - 1);
});

Deno.test("rows refuse logits for nothing that are not one finite number a head", () => {
  using backend = createReferenceBackend();
  const shape = { heads: 2, kvHeads: 1, headDim: 4 };
  for (const nullLogits of [[1], [1, 2, 3], [1, NaN], [Infinity, 0]]) {
    const refused = { name: "RangeError", message: "Null logits: want 2 finite ones" };
    assert.throws(() => backend.createRows({ ...shape, nullLogits: Float32Array.from(nullLogits) }, 0), refused);
  }
});

/** A layer whose queries give some of their attention to nothing, and its softmax rows, `[heads][window][visible]`. */
async function layer() {
  const shape = { heads: 4, kvHeads: 2, headDim: 8, nullLogits: Float32Array.of(-2, 0, 1, 4) };
  const length = 30, window = 6, queries = floats(window * 32, 3);
  const keys = [floats(length * 8, 1), floats(length * 8, 2)];
  const rows: number[][][] = [], logSumExp = new Float32Array(4 * window);
  for (let h = 0; h < 4; h++) {
    rows.push([]);
    for (let t = 0; t < window; t++) {
      const logits = Array.from({ length: length - window + t + 1 }, (_, i) => {
        let dot = 0;
        for (let j = 0; j < 8; j++) dot += queries[(t * 4 + h) * 8 + j] * keys[h >> 1][i * 8 + j];
        return dot / Math.sqrt(8);
      });
      const total = logits.reduce((sum, logit) => sum + Math.exp(logit), Math.exp(shape.nullLogits[h]));
      logSumExp[h * window + t] = Math.log(total);
      rows[h].push(logits.map((logit) => Math.exp(logit) / total));
    }
  }
  return await Promise.resolve({ shape, length, window, queries, keys, rows, logSumExp });
}

const KEPT = [Int32Array.from([0, 1, 5, 6, 7, 12, 20, 28, 29]), Int32Array.from({ length: 30 }, (_, i) => i)];

Deno.test("a certificate counts what is evicted, and not what goes to nothing", async () => {
  const { shape, length, window, queries, keys, rows, logSumExp } = await layer();
  for (const kvHead of [0, 1]) {
    const positions = KEPT[kvHead], left = new Float32Array(positions.length * 8);
    positions.forEach((p, i) => left.set(keys[kvHead].subarray(p * 8, (p + 1) * 8), i * 8));
    const masses = evictedMass({ shape, length, window, queries, logSumExp }, kvHead, { keys: left, positions });
    masses.forEach((of, member) => {
      const want = rows[2 * kvHead + member].map((row) => {
        return row.reduce((sum, p, i) => sum + (positions.includes(i) ? 0 : p), 0);
      });
      assertClose(Float32Array.from(of), Float32Array.from(want), 1e-5, `head ${2 * kvHead + member}`);
      assert.equal(want.some((mass) => mass > 0.01), kvHead === 0);
    });
  }
});

Deno.test("the risk of a budget counts what is evicted, and not what goes to nothing", async () => {
  const { rows, ...whole } = await layer();
  const [sum] = largestMasses(whole, [KEPT]);
  const lost = rows.slice(0, 2).map((of) => {
    return Math.max(...of.map((row) => row.reduce((all, p, i) => all + (KEPT[0].includes(i) ? 0 : p), 0)));
  });
  assert.ok(Math.abs(sum - lost[0] - lost[1]) < 1e-6, `${sum}, not ${lost}`);
});

Deno.test("a refit leaves to nothing what was its own", () => {
  const count = 60, kept = 7, keys = floats(kept * 8, 1), values = floats(kept * 8, 2), queries = floats(count * 8, 3);
  const outputs = new Float32Array(count * 8), logSumExp = new Float32Array(count), nothing = new Float64Array(count);
  for (let s = 0; s < count; s++) {
    const logits = Array.from({ length: kept }, (_, i) => {
      let dot = 0;
      for (let j = 0; j < 8; j++) dot += queries[s * 8 + j] * keys[i * 8 + j];
      return dot / Math.sqrt(8);
    });
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit), Math.exp(1.5));
    logSumExp[s] = Math.log(total);
    nothing[s] = Math.exp(1.5) / total;
    logits.forEach((logit, i) => {
      for (let j = 0; j < 8; j++) outputs[s * 8 + j] += Math.exp(logit) / total * values[i * 8 + j];
    });
  }
  // Everything stays, so nothing is left to fit.
  const settings = { refit: "both", defensive: false } as const;
  const fitted = refitHead({ keys, values }, { queries, outputs, logSumExp, nothing }, 8, settings)!;
  assert.ok(fitted.before < 1e-5 && fitted.after < 1e-5, `${fitted.before}, ${fitted.after}`);
  assertClose(fitted.values, values, 1e-4, "values");
  assert.ok(fitted.bias.every((bias) => Math.abs(bias) < 1e-4), `${fitted.bias}`);
  const unaware = refitHead({ keys, values }, { queries, outputs, logSumExp }, 8, settings)!;
  assert.ok(unaware.before > 0.1, `${unaware.before}`);
});
