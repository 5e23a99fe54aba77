/** The dense engines' oracle: every weight in float32, every sum a plain loop in double precision. For tiny models. */
import type { ModelConfig } from "../../model/config.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";
import type { GgufFile } from "../../model/file/gguf/reader.ts";

/** A matrix `[outputs, inputs]` and what is added to the product, `[outputs]` or nothing. */
interface Layer {
  readonly inputs: number;
  readonly matrix: Float32Array;
  readonly bias?: Float32Array;
}

interface Block {
  readonly attentionNorm: Float32Array;
  /** Query, key, value. */
  readonly projections: readonly Layer[];
  readonly output: Layer;
  readonly feedForwardNorm: Float32Array;
  readonly gate: Layer;
  readonly up: Layer;
  readonly down: Layer;
}

/** Reads a whole model as float32. Its `name` is `web`, since the contract knows no name for an oracle. */
export async function plainDense(file: GgufFile, config: ModelConfig, layers = config.layers): Promise<DenseEngine> {
  const blocks: Block[] = [];
  for (let i = 0; i < layers; i++) blocks.push(await readBlock(file, config, i));
  const embedding = await file.readFloat32("token_embd.weight");
  const norm = await file.readFloat32("output_norm.weight");
  const head = config.tiedHead ? { inputs: config.width, matrix: embedding } : await readLayer(file, "output");
  const { width, normEpsilon } = config;
  return {
    name: "web",
    detail: "plain TypeScript, the oracle",
    config,
    weightBytes: 0,
    embed(ids) {
      return Float32Array.from(
        { length: ids.length * width },
        (_, i) => embedding[ids[Math.floor(i / width)] * width + i % width],
      );
    },
    qkv(layer, hidden, count) {
      const block = blocks[layer];
      return perRow(count, { hidden }, ({ hidden }) => {
        const normed = rmsNorm(hidden, block.attentionNorm, normEpsilon);
        return block.projections.flatMap((projection) => multiply(projection, normed));
      });
    },
    finish(layer, hidden, attention, count) {
      const block = blocks[layer];
      return perRow(count, { hidden, attention }, ({ hidden, attention }) => {
        const residual = add(hidden, multiply(block.output, attention));
        const normed = rmsNorm(residual, block.feedForwardNorm, normEpsilon);
        const up = multiply(block.up, normed);
        const gated = multiply(block.gate, normed).map((gate, i) => gate / (1 + Math.exp(-gate)) * up[i]);
        return add(residual, multiply(block.down, gated));
      });
    },
    logits(hidden, count) {
      return perRow(count, { hidden }, ({ hidden }) => multiply(head, rmsNorm(hidden, norm, normEpsilon)));
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

async function readBlock(file: GgufFile, config: ModelConfig, index: number): Promise<Block> {
  const name = (part: string) => `blk.${index}.${part}`;
  const projections = [];
  for (const part of ["attn_q", "attn_k", "attn_v"]) {
    projections.push(await readLayer(file, name(part), config.qkvBias));
  }
  return {
    attentionNorm: await file.readFloat32(name("attn_norm.weight")),
    projections,
    output: await readLayer(file, name("attn_output")),
    feedForwardNorm: await file.readFloat32(name("ffn_norm.weight")),
    gate: await readLayer(file, name("ffn_gate")),
    up: await readLayer(file, name("ffn_up")),
    down: await readLayer(file, name("ffn_down")),
  };
}

async function readLayer(file: GgufFile, name: string, hasBias = false): Promise<Layer> {
  const inputs = file.tensors.get(`${name}.weight`)!.shape[0];
  const matrix = await file.readFloat32(`${name}.weight`);
  return { inputs, matrix, bias: hasBias ? await file.readFloat32(`${name}.bias`) : undefined };
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

function add(a: readonly number[], b: readonly number[]): number[] {
  return a.map((value, i) => value + b[i]);
}
