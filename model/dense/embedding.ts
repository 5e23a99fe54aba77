import { inputError, resourceError } from "../../core/errors.ts";
import type { PerLayer } from "../architecture.ts";
import type { ModelConfig } from "../config.ts";
import type { GgufFile } from "../file/gguf/reader.ts";
import { dequantise, rowBytesOf, type TensorType } from "../file/tensor_types.ts";

const NAME = "token_embd.weight";

/** The token embeddings, held as the file's bytes, dequantised and scaled row by row. */
export class Embedding {
  /** Bytes held. */
  readonly byteLength: number;
  readonly #raw: Uint8Array;
  readonly #type: TensorType;
  readonly #width: number;
  readonly #rows: number;
  readonly #scale: number;

  constructor(raw: Uint8Array, type: TensorType, rows: number, width: number, scale: number) {
    this.#scale = scale;
    this.byteLength = raw.byteLength;
    this.#raw = raw;
    this.#type = type;
    this.#width = width;
    this.#rows = rows;
  }

  /** Rows `ids` as float32, `[ids.length, width]`. RangeError for an id outside the vocabulary. */
  lookup(ids: ArrayLike<number>): Float32Array {
    const out = new Float32Array(ids.length * this.#width);
    const rowBytes = this.#raw.length / this.#rows;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i];
      if (!Number.isInteger(id) || id < 0 || id >= this.#rows) {
        throw new RangeError(`embed() wants token ids from 0 to ${this.#rows - 1}, not ${id}`);
      }
      const row = this.#raw.subarray(id * rowBytes, (id + 1) * rowBytes);
      dequantise(this.#type, row, out.subarray(i * this.#width, (i + 1) * this.#width));
    }
    return scaled(out, this.#scale);
  }
}

/** The numbers times `factor`, in place. */
export function scaled(numbers: Float32Array, factor: number): Float32Array {
  if (factor !== 1) { for (let i = 0; i < numbers.length; i++) numbers[i] *= factor; }
  return numbers;
}

/** Reads the embeddings of a file that `configOf` has checked. */
export async function readEmbedding(file: GgufFile, config: ModelConfig): Promise<Embedding> {
  const { type } = file.tensors.get(NAME)!;
  return new Embedding(await file.readRaw(NAME), type, config.vocabulary, config.width, config.decoder.embeddingScale);
}

/** Embeddings that each layer has of its own, held as the file's bytes: `layers` runs of `width` for each token. */
export class PerLayerEmbeddings {
  readonly #raw: Uint8Array;
  readonly #type: TensorType;
  readonly #layers: number;
  readonly #of: PerLayer;

  constructor(raw: Uint8Array, type: TensorType, layers: number, of: PerLayer) {
    this.#raw = raw;
    this.#type = type;
    this.#layers = layers;
    this.#of = of;
  }

  /** Bytes held. */
  get byteLength(): number {
    return this.#raw.byteLength;
  }

  /** A layer's, `[ids, width]`; ids are the vocabulary's. */
  rows(layer: number, ids: ArrayLike<number>): Float32Array {
    const { width, scale } = this.#of, bytes = rowBytesOf(this.#type, width);
    const out = new Float32Array(ids.length * width);
    for (let i = 0; i < ids.length; i++) {
      const at = (ids[i] * this.#layers + layer) * bytes;
      dequantise(this.#type, this.#raw.subarray(at, at + bytes), out.subarray(i * width, (i + 1) * width));
    }
    return scaled(out, scale);
  }
}

/** What they take, as in the file; 0 for a model without. */
export function perLayerBytes(
  { tensors }: Pick<GgufFile, "tensors">,
  { decoder }: Pick<ModelConfig, "decoder">,
): number {
  return decoder.perLayer ? tensors.get(`${decoder.perLayer.tensor}.weight`)!.byteLength : 0;
}

/**
 * Reads them of a file that `configOf` has checked.
 * @throws PalisadeError `gguf.unsupported` where a layer's part is no whole number of the type's blocks; resources `memory.short`
 * where there is no room.
 */
export async function readPerLayer(
  file: GgufFile,
  { layers }: Pick<ModelConfig, "layers">,
  of: PerLayer,
): Promise<PerLayerEmbeddings> {
  const name = `${of.tensor}.weight`, { type, byteLength } = file.tensors.get(name)!;
  if (of.width % type.block !== 0) {
    const message = `${name}: ${type.name} has blocks of ${type.block}, and each layer ${of.width} numbers of a token`;
    throw inputError(
      "gguf.unsupported",
      `${file.name}: ${message}; whole blocks are supported`,
      `tensor["${name}"].type`,
    );
  }
  const raw = await file.readRaw(name, { into: roomFor(byteLength, name) });
  return new PerLayerEmbeddings(raw, type, layers, of);
}

function roomFor(bytes: number, name: string): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(bytes);
  } catch {
    throw resourceError("memory.short", `There is no room for the ${Math.ceil(bytes / 1e6)} MB of ${name}`, name);
  }
}
