/** The dense engines' oracle: every weight in float32, every sum a plain loop in double precision. For tiny models. */
import { type Operation, resultOf } from "../../core/dense/operations.ts";
import type { DenseOperation, TensorRows } from "../../model/architecture.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";
import type { GgufFile } from "../../model/file/gguf/reader.ts";

/** A matrix `[outputs, inputs]` and what is added to the product, `[outputs]` or nothing. */
interface Layer {
  readonly inputs: number;
  readonly matrix: Float32Array;
  readonly bias?: Float32Array;
}

type Step = Operation<Float32Array, readonly Layer[]>;

/** Reads a whole model as float32. Its `name` is `web`, since the contract knows no name for an oracle. */
export async function plainDense(file: GgufFile, config: ModelConfig, layers = config.layers): Promise<DenseEngine> {
  const { decoder, width, normEpsilon } = config;
  const blocks: { readonly project: readonly Step[]; readonly finish: readonly Step[] }[] = [];
  for (const { project, finish } of decoder.layers.slice(0, layers)) {
    blocks.push({ project: await readAll(file, project), finish: await readAll(file, finish) });
  }
  const embedding = await file.readFloat32("token_embd.weight"), head = await readAll(file, decoder.head);
  const { perLayer } = decoder, table = perLayer && await file.readFloat32(`${perLayer.tensor}.weight`);
  const embed = (ids: ArrayLike<number>) =>
    Float32Array.from(
      { length: ids.length * width },
      (_, i) => embedding[ids[Math.floor(i / width)] * width + i % width] * decoder.embeddingScale,
    );
  const ofTokens = (layer: number, ids: ArrayLike<number> | undefined): Record<string, Float32Array> => {
    if (!perLayer) return {};
    const { width: each, scale } = perLayer, row = config.layers * each;
    const own = Array.from(ids!).flatMap((
      id,
    ) => [...table!.subarray(id * row + layer * each, id * row + (layer + 1) * each)]);
    return { embedded: embed(ids!), perLayer: Float32Array.from(own, (x) => x * scale) };
  };
  return {
    name: "web",
    detail: "plain TypeScript, the oracle",
    config,
    weightBytes: 0,
    embed,
    qkv: (layer, hidden, count) => perRow(count, { hidden }, (row) => run(blocks[layer].project, row, normEpsilon)),
    finish: (layer, hidden, attention, count, ids) =>
      perRow(
        count,
        { hidden, attention, ...ofTokens(layer, ids) },
        (row) => run(blocks[layer].finish, row, normEpsilon),
      ),
    logits: (hidden, count) => perRow(count, { hidden }, (row) => run(head, row, normEpsilon)),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

async function readAll(file: GgufFile, operations: readonly DenseOperation[]): Promise<Step[]> {
  const steps: Step[] = [];
  for (const operation of operations) {
    if (operation.op === "norm" || operation.op === "headNorm") {
      steps.push({ ...operation, gains: await file.readFloat32(operation.gains) });
    } else if (operation.op === "multiply") {
      const weights: Layer[] = [];
      for (const rows of operation.weights) weights.push(await readLayer(file, rows));
      steps.push({ ...operation, weights });
    } else if (operation.op === "expand" || operation.op === "collect") {
      const weights: Layer[][] = [];
      for (const parts of operation.weights) {
        weights.push([]);
        for (const rows of parts) weights.at(-1)!.push(await readLayer(file, rows));
      }
      steps.push({ ...operation, weights });
    } else steps.push(operation);
  }
  return steps;
}

async function readLayer(file: GgufFile, { tensor, first, rows, bias }: TensorRows): Promise<Layer> {
  const inputs = file.tensors.get(`${tensor}.weight`)!.shape[0];
  const matrix = (await file.readFloat32(`${tensor}.weight`)).subarray(first * inputs, (first + rows) * inputs);
  if (!bias) return { inputs, matrix };
  return { inputs, matrix, bias: (await file.readFloat32(`${tensor}.bias`)).subarray(first, first + rows) };
}

/** A list over one row of each input. */
function run(steps: readonly Step[], inputs: Readonly<Record<string, number[]>>, epsilon: number): number[] {
  const values = new Map(Object.entries(inputs));
  for (const step of steps) {
    const from = (name: string) => values.get(name)!;
    values.set(step.to, apply(step, from, epsilon));
  }
  return values.get(resultOf(steps))!;
}

function apply(step: Step, from: (name: string) => number[], epsilon: number): number[] {
  switch (step.op) {
    case "norm":
      return rmsNorm(from(step.from), step.gains, epsilon);
    case "unitNorm":
    case "headNorm": {
      const gains = step.op === "headNorm" ? step.gains : new Float32Array(step.width).fill(1);
      const row = from(step.from).slice();
      for (let head = 0; head < step.heads; head++) {
        const at = step.first + head * step.width;
        row.splice(at, step.width, ...rmsNorm(row.slice(at, at + step.width), gains, epsilon));
      }
      return row;
    }
    case "multiply":
      return step.weights.flatMap((layer) => multiply(layer, from(step.from)));
    case "gate": {
      const both = from(step.from), half = both.length / 2;
      if (step.activation === "limited") return both.slice(0, half).map((x, i) => limited(x, both[half + i]));
      const activation = ACTIVATIONS[step.activation];
      return both.slice(0, half).map((x, i) => activation(x) * both[half + i]);
    }
    case "gateBy": {
      if (step.activation === "limited") throw new TypeError("No list gates so by another value");
      const activation = ACTIVATIONS[step.activation], by = from(step.by);
      return from(step.from).map((x, i) => activation(x) * by[i]);
    }
    case "add":
      return from(step.from[0]).map((x, i) => x + from(step.from[1])[i]);
    case "scale":
      return from(step.from).map((x, i) => i >= step.first && i < step.first + step.width ? x * step.factor : x);
    case "cap":
      return from(step.from).map((x) => step.cap * Math.tanh(x / step.cap));
    case "couple": {
      const row = from(step.from), left = row.length - step.width;
      return row.slice(0, left).map((x, i) => i < step.first ? x : x * row[i + step.width]);
    }
    case "choose": {
      const numbers = from(step.from), order = [...numbers.keys()].sort((a, b) => numbers[b] - numbers[a]);
      const best = order.slice(0, step.used), weights = best.map((expert) => Math.exp(numbers[expert]));
      return [...best, ...weights.map((weight) => weight / weights.reduce((a, b) => a + b, 0))];
    }
    case "expand": {
      const x = from(step.from), experts = from(step.chosen).slice(0, step.used);
      return Array.from({ length: step.parts }, (_, part) => part)
        .flatMap((part) => experts.flatMap((expert) => multiply(step.weights[expert][part], x)));
    }
    case "collect": {
      const x = from(step.from), chosen = from(step.chosen), each = x.length / step.used;
      const sum = new Array<number>(step.rows).fill(0);
      for (let slot = 0; slot < step.used; slot++) {
        const products = multiply(step.weights[chosen[slot]][0], x.slice(slot * each, (slot + 1) * each));
        products.forEach((product, i) => sum[i] += chosen[step.used + slot] * product);
      }
      return sum;
    }
    default:
      throw new TypeError(`Unknown operation ${step satisfies never}`);
  }
}

const ACTIVATIONS = {
  silu: (x: number) => x / (1 + Math.exp(-x)),
  gelu: (x: number) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

function limited(gate: number, up: number): number {
  const a = Math.min(gate, 7), b = Math.max(-7, Math.min(up, 7));
  return a / (1 + Math.exp(-1.702 * a)) * (b + 1);
}

/** Applies `step` to every row of the inputs and joins the rows it gives. */
function perRow<Names extends string>(
  count: number,
  inputs: Record<Names, Float32Array>,
  step: (row: Record<Names, number[]>) => number[],
): Promise<Float32Array> {
  const rows = Array.from({ length: count }, (_, i) => {
    const row = Object.entries<Float32Array>(inputs).map(([name, all]) => {
      const width = all.length / count;
      return [name, Array.from(all.subarray(i * width, (i + 1) * width))];
    });
    return step(Object.fromEntries(row));
  });
  return Promise.resolve(Float32Array.from(rows.flat()));
}

function multiply({ inputs, matrix, bias }: Layer, x: readonly number[]): number[] {
  return Array.from({ length: matrix.length / inputs }, (_, row) => {
    let sum = bias ? bias[row] : 0;
    for (let i = 0; i < inputs; i++) sum += matrix[row * inputs + i] * x[i];
    return sum;
  });
}

function rmsNorm(x: readonly number[], gains: Float32Array, epsilon: number): number[] {
  const meanSquare = x.reduce((sum, value) => sum + value * value, 0) / x.length;
  return x.map((value, i) => value / Math.sqrt(meanSquare + epsilon) * gains[i]);
}
