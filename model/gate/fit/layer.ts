/** One layer of a calibration: inputs and importance of every text, the regression, and how it does on held-out texts. */
import type { ModelConfig } from "../../config.ts";
import { roundToFloat16 } from "../../file/safetensors.ts";
import { type DesignMatrix, fitRidge, NormalEquations } from "./ridge.ts";

/** y = ln(importance + FLOOR). */
export const FLOOR = 1e-5;
/** First tokens of a text that are left out: always kept, and unlike all others. */
export const SKIPPED = 4;
/** Last tokens that a policy protects: they don't count in the worst case. */
export const RECENT = 8;

/** What is known of one layer once it is fitted; plain numbers, so that it can be saved as JSON. */
export interface LayerFit {
  readonly ridge: number;
  /** `[kvHeads][width]`, as float16 holds them, and the constants. */
  readonly weights: readonly (readonly number[])[];
  readonly bias: readonly number[];
  /** Per KV head, over all entries of the held-out texts. */
  readonly correlation: readonly number[];
  /** Largest ln importance − score of an unprotected entry, per held-out and per shifted text. */
  readonly worst: { readonly heldOut: readonly number[]; readonly shifted: readonly number[] };
}

/** What stands for a window layer, which has nothing to predict. */
export function unfitted({ kvHeads, width }: Pick<ModelConfig, "kvHeads" | "width">): LayerFit {
  const zeros = (length: number) => new Array<number>(length).fill(0);
  return {
    ridge: 0,
    weights: Array.from({ length: kvHeads }, () => zeros(width)),
    bias: zeros(kvHeads),
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
}

/** Inputs after the norm, with a constant 1 as the last column; the first `skipped` tokens left out. */
export function designMatrix(
  { hidden, tokens }: LayerText,
  gains: Float32Array,
  { width, normEpsilon }: ModelConfig,
  skipped = SKIPPED,
): DesignMatrix {
  const rows = Math.max(0, tokens - skipped);
  const data = new Float64Array((width + 1) * rows);
  for (let t = 0; t < rows; t++) {
    const row = hidden.subarray((t + skipped) * width, (t + skipped + 1) * width);
    let squares = 0;
    for (let i = 0; i < width; i++) squares += row[i] * row[i];
    const scale = 1 / Math.sqrt(squares / width + normEpsilon);
    for (let i = 0; i < width; i++) data[i * rows + t] = row[i] * scale * gains[i];
  }
  data.fill(1, width * rows);
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
  #fitted?: { ridge: number; weights: number[][]; bias: number[] };
  readonly #moments: Moments[];
  readonly #worst = { heldOut: [] as number[], shifted: [] as number[] };

  /** `gains`: the layer's attention norm, `[width]`. */
  constructor(config: ModelConfig, gains: Float32Array) {
    this.#config = config;
    this.#gains = gains;
    const equations = () => new NormalEquations(config.width + 1, config.kvHeads);
    this.#folds = [equations(), equations()];
    this.#moments = Array.from({ length: config.kvHeads }, () => new Moments());
  }

  /** A text to fit on. */
  add(text: LayerText): void {
    const fold = this.#folds[this.#texts++ % 5 === 1 ? 1 : 0];
    fold.add(designMatrix(text, this.#gains, this.#config), targetsOf(text, this.#config.kvHeads));
  }

  fit(): void {
    const { width } = this.#config;
    const { ridge, weights } = fitRidge(...this.#folds);
    this.#fitted = {
      ridge,
      weights: weights.map((w) => Array.from(roundToFloat16(Float32Array.from(w.subarray(0, width))))),
      bias: weights.map((w) => Math.fround(w[width])),
    };
  }

  /** A text the regression has not seen. */
  check(text: LayerText, set: "heldOut" | "shifted"): void {
    const { kvHeads, width } = this.#config, { weights, bias } = this.#fitted!;
    const { data, rows } = designMatrix(text, this.#gains, this.#config);
    const y = targetsOf(text, kvHeads);
    let worst = -Infinity;
    for (let g = 0; g < kvHeads; g++) {
      const scores = new Float64Array(rows).fill(bias[g]);
      for (let i = 0; i < width; i++) {
        for (let t = 0; t < rows; t++) scores[t] += data[i * rows + t] * weights[g][i];
      }
      for (let t = 0; t < rows; t++) {
        if (set === "heldOut") this.#moments[g].add(scores[t], y[g * rows + t]);
        if (t < rows - RECENT) worst = Math.max(worst, y[g * rows + t] - scores[t]);
      }
    }
    this.#worst[set].push(worst);
  }

  result(): LayerFit {
    return { ...this.#fitted!, correlation: this.#moments.map((each) => each.correlation()), worst: this.#worst };
  }
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
