/** A tiny safetensors reader for golden data: float32 tensors only, the whole file at once. */

export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** All float32 tensors of a file's bytes, by name. Throws on another type. */
export function parseSafetensors(bytes: Uint8Array): Map<string, Tensor> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerLength = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerLength)));
  const tensors = new Map<string, Tensor>();
  for (const [name, entry] of Object.entries<{ dtype: string; shape: number[]; data_offsets: number[] }>(header)) {
    if (name === "__metadata__") continue;
    if (entry.dtype !== "F32") throw new Error(`Tensor ${name} is ${entry.dtype}: this reader knows F32`);
    const [start, end] = entry.data_offsets.map((offset) => 8 + headerLength + offset);
    // Sliced because a tensor's offset need not be a multiple of 4.
    tensors.set(name, { shape: entry.shape, data: new Float32Array(Uint8Array.from(bytes.subarray(start, end)).buffer) });
  }
  return tensors;
}
