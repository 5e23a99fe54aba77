/** Tensor types we dequantise. */
export const SUPPORTED_TYPES = [
  "F32",
  "F16",
  "BF16",
  "Q4_0",
  "Q4_1",
  "Q5_0",
  "Q8_0",
  "Q4_K",
  "Q6_K",
] as const;

/** Name of a tensor type we dequantise. */
export type SupportedTypeName = typeof SUPPORTED_TYPES[number];

/** How a tensor type is stored: `bytes` bytes for each block of `block` elements of a row. */
export interface TensorType {
  /** As in ggml without its prefix: `Q4_K`. */
  readonly name: string;
  /** Number in the file. */
  readonly id: number;
  /** Elements per block, ≥ 1. */
  readonly block: number;
  /** Bytes per block, ≥ 1. */
  readonly bytes: number;
}

/**
 * Every type a file may name, also those we can't dequantise: their size is needed to check the tensor table, and an
 * error can call them by name. Numbers 4, 5, 31–33 and 36–38 were given to types since removed.
 * Source: `GGML_QUANT_SIZES` in PyPI gguf 0.19.0; Q8_1 has two float16 since 2024 (ggml, `block_q8_1`).
 */
const TABLE: readonly (readonly [id: number, name: string, block: number, bytes: number])[] = [
  [0, "F32", 1, 4],
  [1, "F16", 1, 2],
  [2, "Q4_0", 32, 18],
  [3, "Q4_1", 32, 20],
  [6, "Q5_0", 32, 22],
  [7, "Q5_1", 32, 24],
  [8, "Q8_0", 32, 34],
  [9, "Q8_1", 32, 36],
  [10, "Q2_K", 256, 84],
  [11, "Q3_K", 256, 110],
  [12, "Q4_K", 256, 144],
  [13, "Q5_K", 256, 176],
  [14, "Q6_K", 256, 210],
  [15, "Q8_K", 256, 292],
  [16, "IQ2_XXS", 256, 66],
  [17, "IQ2_XS", 256, 74],
  [18, "IQ3_XXS", 256, 98],
  [19, "IQ1_S", 256, 50],
  [20, "IQ4_NL", 32, 18],
  [21, "IQ3_S", 256, 110],
  [22, "IQ2_S", 256, 82],
  [23, "IQ4_XS", 256, 136],
  [24, "I8", 1, 1],
  [25, "I16", 1, 2],
  [26, "I32", 1, 4],
  [27, "I64", 1, 8],
  [28, "F64", 1, 8],
  [29, "IQ1_M", 256, 56],
  [30, "BF16", 1, 2],
  [34, "TQ1_0", 256, 54],
  [35, "TQ2_0", 256, 66],
  [39, "MXFP4", 32, 17],
  [40, "NVFP4", 64, 36],
  [41, "Q1_0", 128, 18],
];

/** Tensor types by their number in the file. */
export const TENSOR_TYPES: ReadonlyMap<number, TensorType> = new Map(
  TABLE.map(([id, name, block, bytes]) => [id, { id, name, block, bytes }]),
);

/** Whether `dequantise` knows the type. */
export function isSupportedType(name: string): name is SupportedTypeName {
  return (SUPPORTED_TYPES as readonly string[]).includes(name);
}
