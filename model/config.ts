/** What a decoder must know of a model, read from the GGUF's metadata and nowhere else. */
import type { ModelShape } from "../core/shape.ts";
import type { DecoderOperations } from "./architecture.ts";

/** How a position turns into angles. Frequencies are per pair, `[headDim / 2]` (or `rotated / 2`). */
export interface Rope {
  /** `interleaved`: pairs (2j, 2j+1), as llama GGUFs store them; `half`: pairs (j, j + rotated/2). */
  readonly pairs: "interleaved" | "half";
  /** Dimensions that are rotated, even, ≤ headDim. */
  readonly rotated: number;
  /** Angle per position of each pair, `[rotated / 2]`, scaling already applied. */
  readonly frequencies: Float64Array;
  /** Factor on the rotated q and k (YaRN's attention factor); 1 otherwise. */
  readonly magnitude: number;
  /** Queries grow with the position p, by 1 + scale · ln(1 + ⌊p / length⌋). */
  readonly growth?: { readonly scale: number; readonly length: number };
}

export interface ModelConfig extends ModelShape {
  /** Its entry's name (`model/architecture.ts`). */
  readonly architecture: string;
  /** `general.name`, or the file's name. */
  readonly name: string;
  /** Hidden size. */
  readonly width: number;
  readonly feedForward: number;
  readonly vocabulary: number;
  readonly normEpsilon: number;
  /** Trained context in tokens. */
  readonly contextLength: number;
  /** Rotation of each layer, `[layers]`; layers that turn alike share it, one that doesn't turn has 0 dimensions. */
  readonly ropes: readonly Rope[];
  /** Tokens that each layer looks back, or convolves, itself among them, `[layers]`; 0: all. */
  readonly windows: readonly number[];
  /** Taps of the layers that convolve, `[layers][width, taps]`, the oldest first; undefined for one that attends. */
  readonly convolutions?: readonly (Float32Array | undefined)[];
  /** True when the output head shares the embedding's weights. */
  readonly tiedHead: boolean;
  /** What the dense engines run. */
  readonly decoder: DecoderOperations;
}
