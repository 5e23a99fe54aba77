/** The tiny models on a device of another process or of a page, against the logits of transformers. Names no runtime. */
import { RaggedCache } from "../../core/cache/ragged.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import { createGpuDense } from "../../model/dense/gpu/engine.ts";
import { extend } from "../../model/decode/extend.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { bufferSource } from "../../runtime/sources.ts";

/** Rows that go through the products of many. */
const MANY = 8;
/** What logits may be off by, and with 16-bit products. */
const MOST = { float32: 2e-3, auto: 0.1 } as const;

interface Expected {
  readonly ids: number[];
  readonly positions: number[];
  readonly logits: number[][];
}

/** Why a model's logits are wrong, or nothing: many rows at once, and one token by itself. */
export async function gpuModel(
  gpu: GpuDevice,
  name: string,
  read: (name: string) => Promise<Uint8Array<ArrayBuffer>>,
  precision: keyof typeof MOST = "float32",
): Promise<string> {
  const expected: Expected = JSON.parse(new TextDecoder().decode(await read(`${name}.logits.json`)));
  const file = await openGguf(bufferSource(await read(`${name}.gguf`), name)), config = await configOf(file);
  using backend = createGpuBackend(gpu);
  await using dense = await createGpuDense(file, config, gpu, backend.tensors, { precision });
  using cache = new RaggedCache(backend, config);
  const at = expected.positions.findIndex((position) => position >= MANY), last = expected.positions[at];
  const ids = expected.ids.slice(0, last + 1);
  const many = await extend(dense, cache, ids.slice(0, last), { rows: last - expected.positions[0] });
  const offMany = difference(many, expected.logits[0]);
  // One row is never multiplied in 16 bits.
  const one = precision === "auto" ? undefined : await extend(dense, cache, ids.slice(last));
  const off = Math.max(offMany, one ? difference(one, expected.logits[at]) : 0);
  if (backend.tensors.alive > 0) return `${backend.tensors.alive} tensors were not freed`;
  if (precision === "auto" && off < 1e-5) return `logits are off by ${off} alone: no product was rounded`;
  return off <= MOST[precision] ? "" : `logits are off by ${off}`;
}

/** Over the numbers that are wanted; NaN where one is. */
function difference(got: Float32Array, want: readonly number[]): number {
  return want.reduce((most, value, i) => Math.max(most, Math.abs(got[i] - value)), 0);
}
