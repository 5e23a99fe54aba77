/** Hidden states of a run of tokens that go through the layers together, held in chunks on the device. */
import { readPart, Temporaries, type Tensor, type Tensors } from "../../core/backend/tensor.ts";
import { breathe } from "../../runtime/breathe.ts";
import { CHUNK } from "../decode/layer.ts";
import type { Device } from "../device.ts";

/** Some of the tokens: `first … first + count − 1`. */
export interface Chunk {
  readonly index: number;
  readonly first: number;
  readonly count: number;
  /** Ids of the tokens, where they are tokens. */
  readonly ids?: readonly number[];
  /** `[count, width]`. */
  readonly hidden: Tensor;
}

export class HiddenStates implements Disposable {
  readonly #tensors: Tensors;
  readonly #width: number;
  /** Tokens of all chunks but the last. */
  readonly #each: number;
  readonly #chunks: Tensor[] = [];
  readonly #ids: number[][] = [];

  private constructor(tensors: Tensors, width: number, each: number) {
    this.#tensors = tensors;
    this.#width = width;
    this.#each = each;
  }

  /** Embeds `ids`. */
  static async embed({ dense, backend }: Device, ids: ArrayLike<number>): Promise<HiddenStates> {
    const { chunk = CHUNK } = dense, states = new HiddenStates(backend.tensors, dense.config.width, chunk);
    try {
      for (let first = 0; first < ids.length; first += chunk) {
        await breathe();
        const count = Math.min(chunk, ids.length - first);
        const some = Array.from({ length: count }, (_, i) => ids[first + i]);
        states.#chunks.push(await dense.embed(some));
        states.#ids.push(some);
      }
      return states;
    } catch (error) {
      states[Symbol.dispose]();
      throw error;
    }
  }

  /** Numbers in all of them. */
  get length(): number {
    return this.#chunks.reduce((sum, { length }) => sum + length, 0);
  }

  get byteLength(): number {
    return this.#chunks.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** In order; chunks may be replaced on the way. */
  *chunks(): Generator<Chunk> {
    for (let index = 0; index < this.#chunks.length; index++) yield this.chunk(index);
  }

  /** One of them, as it is now. */
  chunk(index: number): Chunk {
    const hidden = this.#chunks[index];
    return { index, first: index * this.#each, count: hidden.length / this.#width, ids: this.#ids[index], hidden };
  }

  /** Puts the next layer's input in a chunk's place. */
  replace({ index }: Chunk, hidden: Tensor): void {
    this.#tensors.free(this.#chunks[index]);
    this.#chunks[index] = hidden;
  }

  /** The same, but what was there is the caller's. */
  exchange({ index }: Chunk, hidden: Tensor): Tensor {
    const old = this.#chunks[index];
    this.#chunks[index] = hidden;
    return old;
  }

  /** The last token's, `[width]`. */
  last(): Promise<Float32Array> {
    const hidden = this.#chunks.at(-1)!;
    return readPart(this.#tensors, hidden, hidden.length - this.#width, this.#width);
  }

  /** The numbers, part by part; not to be written to. */
  async *read(): AsyncGenerator<Float32Array> {
    for (const hidden of this.#chunks) yield await this.#tensors.read(hidden);
  }

  /** Takes other numbers, part by part: `next` gives as many as it is asked for. */
  async fill(next: (length: number) => Promise<Float32Array>): Promise<void> {
    for (const chunk of this.chunks()) this.replace(chunk, this.#tensors.upload(await next(chunk.hidden.length)));
  }

  [Symbol.dispose](): void {
    for (const hidden of this.#chunks) this.#tensors.free(hidden);
    this.#chunks.length = 0;
  }
}

/** A layer's inputs, kept until what is fitted on them has scored them. */
export class LayerInputs implements Disposable {
  readonly chunks: Chunk[] = [];
  readonly #taken: Temporaries;

  constructor(tensors: Tensors) {
    this.#taken = new Temporaries(tensors);
  }

  /** A chunk whose tensor is another's. */
  add(chunk: Chunk): void {
    this.chunks.push(chunk);
  }

  /** A chunk with its tensor. */
  take(chunk: Chunk, hidden: Tensor): void {
    this.chunks.push({ ...chunk, hidden: this.#taken.add(hidden) });
  }

  [Symbol.dispose](): void {
    this.#taken[Symbol.dispose]();
  }
}
