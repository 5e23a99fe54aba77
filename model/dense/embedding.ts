import type { ModelConfig } from "../config.ts";
import type { GgufFile } from "../file/gguf/reader.ts";
import { dequantise, type TensorType } from "../file/tensor_types.ts";

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
