/**
 * A model's layers in float32, to run a few tokens through them forwards and backwards: the gradient goes to the tokens'
 * embeddings, weights are frozen (`core/dense/backward.ts`, `core/dense/soft_attention.ts`).
 */
import { type Matrix, resultIn, runBackward, runForward, type Step, type Tape } from "../../core/dense/backward.ts";
import {
  type ContextRows,
  type SoftAttention,
  softAttention,
  softAttentionGradient,
  type SoftRows,
} from "../../core/dense/soft_attention.ts";
import { inputError } from "../../core/errors.ts";
import { windowOf } from "../../core/shape.ts";
import { ownKernelsFor } from "../dense/own_kernels.ts";
import type { DenseOperation, TensorRows } from "../architecture.ts";
import type { ModelConfig } from "../config.ts";
import { project } from "../dense/project.ts";
import { growthAt, ropeTable, rotate } from "../dense/rope.ts";

/** Where weights come from. */
export interface WeightFile {
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>;
  readFloat32(name: string): Promise<Float32Array>;
}

/** Bytes of float32 weights that are kept; a larger model's are read anew for every pass. */
const HELD_BYTES = 2 ** 30;

/** One layer's lists with their numbers. */
export interface FrozenLayer {
  readonly project: readonly Step[];
  readonly finish: readonly Step[];
}

/** Everything that a layer's way back needs. */
export interface LayerPass {
  readonly before: Tape;
  readonly rows: SoftRows;
  readonly seen: SoftAttention;
  readonly after: Tape;
  /** The next layer's input, `[count, width]`. */
  readonly hidden: Float32Array;
}

/** The layers of a model without experts and convolutions. */
export class FrozenModel {
  readonly config: ModelConfig;
  readonly #file: WeightFile;
  readonly #held = new Map<number, FrozenLayer>();
  #heldBytes = 0;

  /** @throws PalisadeError `calibrate.experts`, `calibrate.convolutions`, `calibrate.mixed-layers` for a model that has them. */
  constructor(file: WeightFile, config: ModelConfig) {
    const special = ownKernelsFor(config);
    if (special) {
      const why = {
        experts: "which expert a token goes to has no gradient",
        convolutions: "its layers convolve",
        "mixed-layers": "its layers are of several shapes",
      }[special];
      throw inputError(`calibrate.${special}`, `Can't train soft tokens for ${config.name}: ${why}`, config.name);
    }
    this.config = config;
    this.#file = file;
  }

  /** A layer's weights. */
  async layer(layer: number): Promise<FrozenLayer> {
    const held = this.#held.get(layer);
    if (held) return held;
    const lists = this.config.decoder.layers[layer];
    const read = { project: await this.#steps(lists.project), finish: await this.#steps(lists.finish) };
    const bytes = [...read.project, ...read.finish].reduce((sum, step) => sum + bytesOf(step), 0);
    if (this.#heldBytes + bytes <= HELD_BYTES) {
      this.#held.set(layer, read);
      this.#heldBytes += bytes;
    }
    return read;
  }

  async #steps(operations: readonly DenseOperation[]): Promise<Step[]> {
    const steps: Step[] = [];
    for (const operation of operations) {
      if (operation.op === "norm" || operation.op === "headNorm") {
        steps.push({ ...operation, gains: await this.#file.readFloat32(operation.gains) });
      } else if (operation.op === "multiply") {
        const weights: Matrix[] = [];
        for (const rows of operation.weights) weights.push(await this.#matrix(rows));
        steps.push({ ...operation, weights });
      } else if (operation.op !== "expand" && operation.op !== "collect") steps.push(operation);
    }
    return steps;
  }

  async #matrix({ tensor, first, rows, bias }: TensorRows): Promise<Matrix> {
    const inputs = this.#file.tensors.get(`${tensor}.weight`)!.shape[0];
    const all = await this.#file.readFloat32(`${tensor}.weight`);
    const numbers = all.subarray(first * inputs, (first + rows) * inputs);
    if (!bias) return { inputs, numbers };
    return { inputs, numbers, bias: (await this.#file.readFloat32(`${tensor}.bias`)).subarray(first, first + rows) };
  }

  /** `hidden`, `[count, width]`, through a layer behind `context`; the first of them stands at `position`. */
  forward(
    layer: number,
    weights: FrozenLayer,
    context: ContextRows,
    hidden: Float32Array,
    position: number,
  ): LayerPass {
    const { config } = this, count = hidden.length / config.width, { normEpsilon } = config;
    const before = runForward(weights.project, { hidden }, count, normEpsilon);
    const rows = project(config, layer, resultIn(weights.project, before), count, position);
    const seen = softAttention(config, context, rows, windowOf(config, layer));
    const after = runForward(
      weights.finish,
      { hidden, attention: seen.output },
      count,
      normEpsilon,
    );
    return { before, rows, seen, after, hidden: resultIn(weights.finish, after) };
  }

  /**
   * Gradient of the layer's input, `[count, width]`, from that of its result, absent behind the last layer that matters,
   * and that of the mean attention on the context, `[kvHeads, length]`, where there is one.
   */
  backward(
    layer: number,
    weights: FrozenLayer,
    context: ContextRows,
    pass: LayerPass,
    position: number,
    result?: Float32Array,
    mean?: Float32Array,
  ): Float32Array {
    const { config } = this, count = pass.hidden.length / config.width, { normEpsilon } = config;
    const finish = result ? runBackward(weights.finish, pass.after, result, count, normEpsilon) : undefined;
    const output = finish?.get("attention") ?? new Float32Array(pass.seen.output.length);
    const window = windowOf(config, layer);
    const rows = softAttentionGradient(config, context, pass.rows, pass.seen, output, mean, window);
    const qkv = unproject(config, layer, rows, count, position);
    const input = runBackward(weights.project, pass.before, qkv, count, normEpsilon).get("hidden")!;
    const around = finish?.get("hidden");
    return around ? input.map((x, i) => x + around[i]) : input;
  }
}

function bytesOf(step: Step): number {
  if (step.op !== "multiply") return 0;
  return step.weights.reduce((sum, { numbers }) => sum + numbers.byteLength, 0);
}

/** The way back of `project`: gradients of rotated rows to those of q, k and v side by side. */
function unproject(config: ModelConfig, layer: number, rows: SoftRows, count: number, first: number): Float32Array {
  const { heads, kvHeads, headDim } = config, rope = config.ropes[layer];
  const q = heads * headDim, kv = kvHeads * headDim, row = q + 2 * kv, out = new Float32Array(count * row);
  const queries = rows.queries.map((x, i) => x * growthAt(rope, first + Math.floor(i / q))), keys = rows.keys.slice();
  // A rotation's transpose turns the other way.
  const { cos, sin } = ropeTable(rope, first, count), back = { cos, sin: sin.map((x) => -x) };
  rotate(queries, heads, headDim, rope, back);
  rotate(keys, kvHeads, headDim, rope, back);
  for (let t = 0; t < count; t++) {
    out.set(queries.subarray(t * q, (t + 1) * q), t * row);
    out.set(keys.subarray(t * kv, (t + 1) * kv), t * row + q);
    out.set(rows.values.subarray(t * kv, (t + 1) * kv), t * row + q + kv);
  }
  return out;
}
