/**
 * Trains soft tokens: embeddings alone, by the gradient through the frozen model (Judge Q, arXiv 2509.10798).
 *
 * Loss: over the global layers and KV heads, the mean of ‖A_soft − A_answer‖², where A is the mean attention on the
 * context, over the group's heads and the tokens together, without the first entries, scaled to length 1. The paper's is
 * the mean square of the attention itself, per query head: there the sinks, which no policy evicts, outweigh everything
 * else, and a head's size counts, which selection per head never sees.
 *
 * Adam, a step over every example in turn, rates falling linearly to 0. Batches, order and numbers depend on nothing but
 * the plan, so that a run that was stopped goes on as if it had not been.
 */
import { breathe } from "../../runtime/breathe.ts";
import type { Example } from "./examples.ts";
import type { FrozenModel, LayerPass } from "./frozen.ts";

/** First entries that count for nothing: every policy keeps them. */
export const SKIPPED_SINKS = 4;
/** Adam's decays of the means and of the squares, and what keeps the root from 0. */
const BETA1 = 0.9, BETA2 = 0.95, EPSILON = 1e-12;
/** Share of the entries whose attention {@link Quality.recall} counts. */
const RECALLED = 0.2;

/** Where training is: all that going on needs. */
export interface TrainingState {
  /** Steps done. */
  readonly step: number;
  /** `[count, width]`. */
  readonly embeddings: Float32Array;
  /** Adam's means of the gradient and of its squares, as the embeddings. */
  readonly means: Float32Array;
  readonly squares: Float32Array;
}

/** How well tokens see what the answer sees. */
export interface Quality {
  readonly loss: number;
  /** Of the answer's attention outside the sinks, the share on the 20 % of each head that the tokens look at most. */
  readonly recall: number;
  /** The same for the best choice there is. */
  readonly best: number;
}

/** Nothing done yet. */
export function beginTraining(embeddings: Float32Array): TrainingState {
  const { length } = embeddings;
  return { step: 0, embeddings, means: new Float32Array(length), squares: new Float32Array(length) };
}

/** Loss of one example, and its gradient by the embeddings, `[count, width]`. */
export async function lossAndGradient(
  model: FrozenModel,
  { length, layers }: Example,
  embeddings: Float32Array,
): Promise<{ readonly loss: number; readonly gradient: Float32Array }> {
  const passes = await forward(model, { length, layers }, embeddings);
  const heads = headsOf(model, layers);
  let loss = 0, gradient: Float32Array | undefined;
  for (let layer = layers.length - 1; layer >= 0; layer--) {
    const { context, target } = layers[layer], { mean } = passes[layer].seen;
    const error = target && headErrors(mean, target, model.config.kvHeads, heads);
    loss += error?.loss ?? 0;
    // Behind the last layer with a target nothing matters.
    if (!gradient && !error) continue;
    const weights = await model.layer(layer);
    gradient = model.backward(layer, weights, context, passes[layer], length, gradient, error?.gradient);
    await breathe();
  }
  return { loss, gradient: gradient ?? new Float32Array(embeddings.length) };
}

/** One step of Adam on the mean gradient of a batch. `rate`: how far a number goes, at most about. */
export async function trainStep(
  model: FrozenModel,
  batch: readonly Example[],
  state: TrainingState,
  rate: number,
): Promise<{ readonly state: TrainingState; readonly loss: number }> {
  const gradient = new Float32Array(state.embeddings.length);
  let loss = 0;
  for (const example of batch) {
    const one = await lossAndGradient(model, example, state.embeddings);
    loss += one.loss / batch.length;
    one.gradient.forEach((x, i) => gradient[i] += x / batch.length);
  }
  return { state: adam(state, gradient, rate), loss };
}

/** Adam, Kingma and Ba 2014, arXiv 1412.6980. */
export function adam(state: TrainingState, gradient: Float32Array, rate: number): TrainingState {
  const step = state.step + 1;
  const means = state.means.map((m, i) => BETA1 * m + (1 - BETA1) * gradient[i]);
  const squares = state.squares.map((s, i) => BETA2 * s + (1 - BETA2) * gradient[i] ** 2);
  const first = 1 - BETA1 ** step, second = 1 - BETA2 ** step;
  const embeddings = state.embeddings.map((x, i) =>
    x - rate * means[i] / first / (Math.sqrt(squares[i] / second) + EPSILON)
  );
  return { step, embeddings, means, squares };
}

/** What tokens are worth on examples, each counted alike. */
export async function qualityOf(
  model: FrozenModel,
  examples: readonly Example[],
  embeddings: Float32Array,
): Promise<Quality> {
  let loss = 0, recall = 0, best = 0;
  for (const example of examples) {
    const passes = await forward(model, example, embeddings), heads = headsOf(model, example.layers);
    for (const [layer, { target }] of example.layers.entries()) {
      if (!target) continue;
      const { mean } = passes[layer].seen;
      loss += headErrors(mean, target, model.config.kvHeads, heads).loss / examples.length;
      recall += recalled(mean, target, model.config.kvHeads) / heads / examples.length;
      best += recalled(target, target, model.config.kvHeads) / heads / examples.length;
    }
  }
  return { loss, recall, best };
}

async function forward(
  model: FrozenModel,
  { length, layers }: Example,
  embeddings: Float32Array,
): Promise<LayerPass[]> {
  const passes: LayerPass[] = [];
  for (const [layer, { context }] of layers.entries()) {
    const hidden = passes.at(-1)?.hidden ?? embeddings;
    passes.push(model.forward(layer, await model.layer(layer), context, hidden, length));
    await breathe();
  }
  return passes;
}

/** KV heads of all layers with a target. */
function headsOf({ config }: FrozenModel, layers: Example["layers"]): number {
  return config.kvHeads * layers.filter(({ target }) => target).length;
}

/**
 * A layer's part of the loss, and its gradient by the mean attention, `[kvHeads, length]`. With a and t scaled to length
 * 1, ‖a − t‖² = 2 − 2·cos, and its slope by the unscaled a is −2 (t − cos·a) / ‖unscaled a‖.
 */
function headErrors(mean: Float32Array, target: Float32Array, kvHeads: number, heads: number) {
  const length = mean.length / kvHeads, gradient = new Float32Array(mean.length);
  let loss = 0;
  for (let head = 0; head < kvHeads; head++) {
    const first = head * length + SKIPPED_SINKS, end = (head + 1) * length;
    let own = 0, wanted = 0, both = 0;
    for (let i = first; i < end; i++) {
      own += mean[i] ** 2;
      wanted += target[i] ** 2;
      both += mean[i] * target[i];
    }
    // A head that looks at nothing but the sinks has no direction, and nothing to be learned from.
    if (!(own > 0 && wanted > 0)) continue;
    const size = Math.sqrt(own), cosine = both / size / Math.sqrt(wanted);
    loss += (2 - 2 * cosine) / heads;
    for (let i = first; i < end; i++) {
      gradient[i] = -2 / heads * (target[i] / Math.sqrt(wanted) - cosine * mean[i] / size) / size;
    }
  }
  return { loss, gradient };
}

/** Sum over the heads of the share of the target's attention that lies on what the scores put first. */
function recalled(scores: Float32Array, target: Float32Array, kvHeads: number): number {
  const length = scores.length / kvHeads;
  let sum = 0;
  for (let head = 0; head < kvHeads; head++) {
    const first = head * length + SKIPPED_SINKS, candidates = Math.max(0, length - SKIPPED_SINKS);
    const order = Array.from({ length: candidates }, (_, i) => first + i).sort((a, b) =>
      scores[b] - scores[a] || a - b
    );
    const all = order.reduce((total, i) => total + target[i], 0);
    const kept = order.slice(0, Math.ceil(RECALLED * candidates)).reduce((total, i) => total + target[i], 0);
    sum += all > 0 ? kept / all : 1;
  }
  return sum;
}
