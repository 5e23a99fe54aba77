/** One layer of a calibration: inputs and importance of every text, the regression, and how it does on held-out texts. */
import type { ModelConfig } from "../../config.ts";
import { roundToFloat16 } from "../../file/safetensors.ts";
import type { Algebra } from "../../../core/refit/linear.ts";
import { termScale, termsOf } from "../key_terms.ts";
import { type DesignMatrix, fitRidge, NormalEquations } from "./ridge.ts";

/** y = ln(importance + FLOOR). */
export const FLOOR = 1e-5;
/** First tokens of a text that are left out: always kept, and unlike all others. */
export const SKIPPED = 4;
/** Last tokens that a policy protects: they don't count in the worst case. */
export const RECENT = 8;

/** Terms weigh so much more than hidden states when the ridge shrinks both: there are few of them. */
const TERM_WEIGHT = 10;

/** A regression: `[kvHeads][width]`, as float16 holds them, and the constants. */
export interface FittedHeads {
  readonly weights: readonly (readonly number[])[];
  readonly bias: readonly number[];
}

/** What is known of one layer once it is fitted; plain numbers, so that it can be saved as JSON. */
export interface LayerFit extends FittedHeads {
  readonly ridge: number;
  /** The one that looks at keys, too; `terms`: `[kvHeads][terms]`. */
  readonly keyed?: FittedHeads & { readonly terms: readonly (readonly number[])[] };
  /** Per KV head, over all entries of the held-out texts; of the keyed one where there is one. */
  readonly correlation: readonly number[];
  /** Largest ln importance − score of an unprotected entry, per held-out and per shifted text. */
  readonly worst: { readonly heldOut: readonly number[]; readonly shifted: readonly number[] };
}

/** What stands for a window layer, which has nothing to predict. */
export function unfitted(config: Pick<ModelConfig, "kvHeads" | "headDim" | "width">, keyed: boolean): LayerFit {
  const { kvHeads, width } = config, zeros = (length: number) => new Array<number>(length).fill(0);
  const rows = (length: number) => Array.from({ length: kvHeads }, () => zeros(length));
  const none = { weights: rows(width), bias: zeros(kvHeads) };
  return {
    ridge: 0,
    ...none,
    ...(keyed && { keyed: { ...none, terms: rows(termsOf(config)) } }),
    correlation: zeros(kvHeads),
    worst: { heldOut: [], shifted: [] },
  };
}

/** One text in one layer. */
export interface LayerText {
  /** Layer input before its norm, `[tokens, width]`. */
  readonly hidden: Float32Array;
  /** `[kvHeads, tokens]`. */
  readonly importance: Float32Array;
  readonly tokens: number;
  /** What its keys say, `[terms, tokens]` (`key_terms.ts`). */
  readonly terms?: Float32Array;
}

/**
 * Inputs after the norm, then the terms, where there are any, each as `scaled` makes it, and a constant 1 as the last
 * column; the first `skipped` tokens left out.
 */
export function designMatrix(
  { hidden, tokens, terms = new Float32Array(0) }: LayerText,
  gains: Float32Array,
  { width, normEpsilon }: Pick<ModelConfig, "width" | "normEpsilon">,
  { skipped = SKIPPED, scaled = (term) => term }: {
    readonly skipped?: number;
    readonly scaled?: (term: number, index: number) => number;
  } = {},
): DesignMatrix {
  const rows = Math.max(0, tokens - skipped), count = terms.length / tokens || 0;
  const data = new Float64Array((width + count + 1) * rows);
  for (let t = 0; t < rows; t++) {
    const row = hidden.subarray((t + skipped) * width, (t + skipped + 1) * width);
    let squares = 0;
    for (let i = 0; i < width; i++) squares += row[i] * row[i];
    const scale = 1 / Math.sqrt(squares / width + normEpsilon);
    for (let i = 0; i < width; i++) data[i * rows + t] = row[i] * scale * gains[i];
  }
  for (let i = 0; i < count; i++) {
    for (let t = 0; t < rows; t++) data[(width + i) * rows + t] = scaled(terms[i * tokens + t + skipped], i);
  }
  data.fill(1, (width + count) * rows);
  return { data, rows };
}

/** ln(importance + FLOOR) of the same rows, `[kvHeads, rows]`. */
export function targetsOf({ importance, tokens }: LayerText, kvHeads: number, skipped = SKIPPED): Float64Array {
  const rows = Math.max(0, tokens - skipped), y = new Float64Array(kvHeads * rows);
  for (let g = 0; g < kvHeads; g++) {
    for (let t = 0; t < rows; t++) y[g * rows + t] = Math.log(importance[g * tokens + skipped + t] + FLOOR);
  }
  return y;
}

/** Collects one layer. Texts fitted on come first, then {@link fit}, then the others. */
export class LayerCalibration {
  readonly #config: ModelConfig;
  readonly #gains: Float32Array;
  /** Every fifth text chooses the ridge. */
  readonly #folds: readonly [NormalEquations, NormalEquations];
  #texts = 0;
  #fitted?: Pick<LayerFit, "ridge" | "keyed"> & FittedHeads;
  readonly #weight: number;
  /** Terms of a token; 0 where keys are not looked at. */
  readonly #terms: number;
  readonly #moments: Moments[];
  readonly #worst = { heldOut: [] as number[], shifted: [] as number[] };

  /** `gains`: the layer's attention norm, `[width]`; `keyed`: texts come with terms; `algebra`: who multiplies and solves. */
  constructor(config: ModelConfig, gains: Float32Array, keyed: boolean, algebra?: Algebra) {
    this.#config = config;
    this.#gains = gains;
    this.#weight = TERM_WEIGHT * termScale(gains);
    this.#terms = keyed ? termsOf(config) : 0;
    const columns = config.width + this.#terms + 1, measured = keyed ? config.width : columns;
    const equations = () => new NormalEquations(columns, config.kvHeads, { measured, algebra });
    this.#folds = [equations(), equations()];
    this.#moments = Array.from({ length: config.kvHeads }, () => new Moments());
  }

  /** A text to fit on. */
  add(text: LayerText): void {
    const fold = this.#folds[this.#texts++ % 5 === 1 ? 1 : 0];
    fold.add(this.#design(text), targetsOf(text, this.#config.kvHeads));
  }

  fit(): void {
    const { width } = this.#config, terms = this.#terms, [fold, other] = this.#folds;
    // The columns of the terms are left out of sums that are there anyway.
    const alone = fitRidge(fold.without(width, terms), other.without(width, terms));
    const keyed = terms > 0 ? fitRidge(fold, other) : undefined;
    this.#fitted = {
      ridge: (keyed ?? alone).ridge,
      ...heads(alone.weights, width),
      ...(keyed && {
        keyed: {
          ...heads(keyed.weights, width),
          terms: keyed.weights.map((w) => Array.from(w.subarray(width, -1), (x) => Math.fround(x * this.#weight))),
        },
      }),
    };
  }

  #design(text: LayerText): DesignMatrix {
    return designMatrix(text, this.#gains, this.#config, { scaled: (term) => term * this.#weight });
  }

  /** A text the regression has not seen. */
  check(text: LayerText, set: "heldOut" | "shifted"): void {
    const { kvHeads } = this.#config,
      { keyed, ...alone } = this.#fitted!,
      design = this.#design(text),
      { rows } = design;
    const y = targetsOf(text, kvHeads);
    let worst = -Infinity;
    for (let g = 0; g < kvHeads; g++) {
      const scores = predicted(design, alone.weights[g], alone.bias[g]);
      // Margins are promised of what goes by hidden states alone.
      for (let t = 0; t < rows - RECENT; t++) worst = Math.max(worst, y[g * rows + t] - scores[t]);
      if (set !== "heldOut") continue;
      const terms = keyed?.terms[g].map((x) => x / this.#weight) ?? [];
      const best = keyed ? predicted(design, [...keyed.weights[g], ...terms], keyed.bias[g]) : scores;
      for (let t = 0; t < rows; t++) this.#moments[g].add(best[t], y[g * rows + t]);
    }
    this.#worst[set].push(worst);
  }

  result(): LayerFit {
    return { ...this.#fitted!, correlation: this.#moments.map((each) => each.correlation()), worst: this.#worst };
  }
}

/** Weights of the hidden state's columns, and the constants. */
function heads(weights: readonly Float64Array[], width: number): FittedHeads {
  return {
    weights: weights.map((w) => Array.from(roundToFloat16(Float32Array.from(w.subarray(0, width))))),
    bias: weights.map((w) => Math.fround(w[w.length - 1])),
  };
}

/** Scores of the rows, by as many of the first columns as there are weights. */
function predicted({ data, rows }: DesignMatrix, weights: readonly number[], bias: number): Float64Array {
  const scores = new Float64Array(rows).fill(bias);
  weights.forEach((weight, i) => {
    for (let t = 0; t < rows; t++) scores[t] += data[i * rows + t] * weight;
  });
  return scores;
}

/** Running sums of two variables. */
class Moments {
  #n = 0;
  #x = 0;
  #y = 0;
  #xx = 0;
  #yy = 0;
  #xy = 0;

  add(x: number, y: number): void {
    this.#n++;
    this.#x += x;
    this.#y += y;
    this.#xx += x * x;
    this.#yy += y * y;
    this.#xy += x * y;
  }

  /** Pearson's; 0 where one of them does not vary. */
  correlation(): number {
    const n = this.#n, cov = this.#xy - this.#x * this.#y / n;
    const spread = Math.sqrt((this.#xx - this.#x ** 2 / n) * (this.#yy - this.#y ** 2 / n));
    return spread > 0 ? Number((cov / spread).toFixed(4)) : 0;
  }
}
