/** Golden data: the float32 tensors of a safetensors file, all at once. */
import { parseSafetensors as parse } from "../../model/file/safetensors.ts";

export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** All tensors of a file's bytes, by name. Throws on a type that is no float of 16 or 32 bits. */
export function parseSafetensors(bytes: Uint8Array): Map<string, Tensor> {
  const { tensors } = parse(bytes, "golden file");
  return new Map([...tensors].map(([name, tensor]) => [name, { shape: tensor.shape, data: tensor.read() }]));
}
