/** Keys and values of one layer on a WebGPU device. See `LayerRows` for each method, `CheckedRows` for what they trust. */
import type {
  AttentionOutputs,
  AttentionWants,
  CopiedRows,
  DecodeOutputs,
  RefittedRows,
  TrustingRows,
} from "../../core/backend/interface.ts";
import { unstorable } from "../../core/cache/entry_type.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";
import type { Needs, NormKind, Observation } from "../../core/policy/policy.ts";
import type { GpuBuffer } from "../device.ts";
import type { GpuTensor, GpuTensors } from "../tensors.ts";
import { Attention, type Queries } from "./attention.ts";
import { convolve } from "./convolve.ts";
import { observeWindow } from "./observe.ts";
import { readRows } from "./read.ts";
import { checkSeen } from "./stages.ts";
import { storeRows, storeTurned } from "./store.ts";
import { StoredHeads, type StoredOptions } from "./stored_heads.ts";
import { turnKeys } from "./turn.ts";
import { measureNorms } from "./value_norms.ts";

export class GpuRows implements TrustingRows<GpuTensor> {
  readonly #tensors: GpuTensors;
  readonly #options: StoredOptions;
  readonly #stored: StoredHeads;
  readonly #attention: Attention;
  /** The number by which stages tell that they met what can't be stored. */
  readonly #owner: number;
  /** Why nothing can be done with these rows any more. */
  #failed: Error | undefined;

  /** Empty, with room for `reserve` rows per head. @throws PalisadeError `gpu.limit`, `gpu.lost`. */
  constructor(tensors: GpuTensors, options: StoredOptions, reserve: number) {
    this.#tensors = tensors;
    this.#options = options;
    this.#stored = new StoredHeads(options, reserve);
    this.#attention = new Attention(tensors, this.#stored);
    this.#owner = options.gpu.listen(() => this.#failed = unstorable(options.type));
  }

  get allocatedBytes(): number {
    return this.#stored.allocatedBytes;
  }

  append(keys: GpuTensor, values: GpuTensor, count: number): void {
    this.#change();
    this.#stored.grow(count);
    const { blocks, lengths, stride } = this.#stored, heads = lengths.length;
    for (const block of this.#storeTurned(keys, values) ? [] : blocks) {
      // A block of several heads takes all rows, whatever their lengths.
      const length = lengths[block.first], first = Math.max(0, block.from - length);
      storeRows(this.#options, {
        parts: [[keys.buffer, block.keys], [values.buffer, block.values]],
        ...{ first, count: Math.min(count, block.to - length), heads, firstHead: block.first, owner: this.#owner },
        words: block.words.map((origin, i) => origin + lengths[block.first + i] * stride),
      });
    }
    for (let head = 0; head < heads; head++) lengths[head] += count;
  }

  /** Stores rows as a product gave them, turned on the way; whether they are such, and it could. */
  #storeTurned(keys: GpuTensor, values: GpuTensor): boolean {
    const { blocks, lengths, stride } = this.#stored, turning = keys.lazy?.turning;
    if (!turning || turning !== values.lazy?.turning || blocks.length !== 1) return false;
    const [block] = blocks, words = block.words.map((origin, head) => origin + lengths[head] * stride);
    const call = { turning, keys: block.keys, values: block.values, owner: this.#owner, words };
    return storeTurned(this.#options, call);
  }

  async prefillAttention(
    tensor: GpuTensor,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs<GpuTensor>> {
    return await this.#attend({ tensor, count }, want);
  }

  async unmaskedAttention(
    tensor: GpuTensor,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs<GpuTensor>> {
    return await this.#attend({ tensor, count, unmasked: true }, want);
  }

  async #attend(queries: Queries, want: AttentionWants): Promise<AttentionOutputs<GpuTensor>> {
    this.#check();
    const { gpu, shape: { heads } } = this.#options, { count } = queries;
    const { output, stats } = this.#attention.attend(queries);
    const logSumExp = want.logSumExp ? this.#floats(stats, 2 * count * heads) : undefined;
    gpu.giveBack(stats);
    const columns = want.columnSum || want.columnMax ? this.#columns(queries, want) : undefined;
    return await this.#with(output, async () => {
      const [pairs, columnReads] = await Promise.all([logSumExp, columns]);
      return { output, ...columnReads, ...(pairs && { logSumExp: logSums(pairs) }) };
    });
  }

  async #columns(queries: Queries, want: AttentionWants) {
    const { gpu, shape: { heads } } = this.#options, rows = this.#stored.longest, plane = heads * rows;
    checkSeen(gpu, "Sums and maxima of a layer's attention", 8 * plane);
    const planes = gpu.borrow(8 * plane);
    gpu.clear(planes);
    const weights = want.rowWeights && this.#tensors.upload(fourByFour(want.rowWeights));
    gpu.giveBack(this.#attention.runs(queries, {}, (run) => this.#attention.addColumns(run, planes, weights?.buffer)));
    if (weights) this.#tensors.free(weights);
    const sums = want.columnSum ? this.#floats(planes, plane) : undefined;
    const maxima = want.columnMax ? this.#floats(planes, plane, plane) : undefined;
    gpu.giveBack(planes);
    const [columnSum, columnMax] = await Promise.all([sums, maxima]);
    return { columnSum, columnMax };
  }

  async decodeAttention(
    tensor: GpuTensor,
    count: number,
    want: { probabilities?: boolean } = {},
  ): Promise<DecodeOutputs<GpuTensor>> {
    this.#check();
    const { gpu } = this.#options, { output, stats } = this.#attention.attend({ tensor, count });
    gpu.giveBack(stats);
    if (!want.probabilities) return { output };
    const reads = this.#probabilities(tensor, count);
    return await this.#with(output, async () => ({ output, probabilities: await reads }));
  }

  async convolve(queries: GpuTensor, count: number, taps: Float32Array): Promise<{ readonly output: GpuTensor }> {
    this.#check();
    const output = this.#tensors.make(queries.length), each = taps.length / (queries.length / count);
    return await this.#with(output, () => {
      const buffer = this.#options.constants.of(taps);
      convolve(this.#stored, queries, count, { buffer, each }, output.buffer);
      return Promise.resolve({ output });
    });
  }

  /** Of the last query, each head's rows. */
  async #probabilities(tensor: GpuTensor, count: number): Promise<Float32Array[]> {
    const { gpu, shape: { heads, kvHeads } } = this.#options, reads: Promise<Float32Array>[] = [];
    const measures = this.#attention.runs(
      { tensor, count },
      { firstQuery: count - 1 },
      ({ scratch, pitch, ...run }) => {
        for (let i = 0; i < run.heads; i++) {
          const length = this.#stored.lengths[Math.floor((run.firstHead + i) / (heads / kvHeads))];
          reads.push(this.#floats(scratch, length, i * pitch));
        }
      },
    );
    gpu.giveBack(measures);
    return await Promise.all(reads);
  }

  async observe(queries: GpuTensor, window: number, needs: Needs): Promise<Partial<Observation>> {
    this.#check();
    const measured = needs.window?.length ? observeWindow(this.#attention, this.#stored, queries, window, needs) : {};
    const rows = needs.rows ? this.#allRows() : {};
    return { ...await measured, ...await rows };
  }

  async #allRows(): Promise<CopiedRows> {
    const { shape: { kvHeads, headDim } } = this.#options, each = this.#stored.longest * headDim;
    const part = async (name: "keys" | "values") => {
      const all = new Float32Array(kvHeads * each);
      const heads = Array.from({ length: kvHeads }, (_, head) => readRows(this.#stored, name, head));
      (await Promise.all(heads)).forEach((rows, head) => all.set(rows, head * each));
      return all;
    };
    const [keys, values] = await Promise.all([part("keys"), part("values")]);
    return { keys, values };
  }

  async valueNorms(wo: Float32Array | GpuTensor, width: number, kind: NormKind = "l1"): Promise<Float32Array> {
    this.#check();
    return await measureNorms(this.#stored, wo, width, kind);
  }

  refit(kvHead: number, { values, bias }: RefittedRows): void {
    this.#change();
    const { headDim } = this.#options.shape, { stride } = this.#stored;
    for (const { block, origin, first, count } of this.#stored.pieces(kvHead)) {
      const source = this.#tensors.upload(values.slice(first * headDim, (first + count) * headDim));
      storeRows(this.#options, {
        parts: [[source.buffer, block.values]],
        ...{ count, heads: 1, firstHead: 0, owner: this.#owner, words: [origin + first * stride] },
      });
      this.#tensors.free(source);
    }
    this.#stored.setBias(kvHead, bias);
  }

  compact(kept: readonly Int32Array[]): void {
    this.#change();
    this.#stored.keep(kept);
  }

  truncate(lengths: ArrayLike<number>): void {
    this.#change();
    this.#stored.truncate(lengths);
  }

  // deno-lint-ignore require-await -- a failure must reject, not throw
  async rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    this.#change();
    turnKeys(this.#stored, this.#owner, moves, rotation);
  }

  // deno-lint-ignore require-await -- as above
  async clone(): Promise<GpuRows> {
    this.#check();
    const copy = new GpuRows(this.#tensors, this.#options, 0);
    try {
      copy.#change();
      copy.#stored.copyFrom(this.#stored);
    } catch (error) {
      copy.free();
      throw error;
    }
    return copy;
  }

  async copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows> {
    this.#check();
    const bias = this.#stored.biases.read(kvHead, this.#stored.lengths[kvHead], wanted);
    const parts = (["keys", "values"] as const).map((part) => readRows(this.#stored, part, kvHead, wanted));
    const [keys, values] = await Promise.all(parts);
    return { keys, values, ...(bias && { bias }) };
  }

  free(): void {
    this.#options.gpu.unlisten(this.#owner);
    this.#stored.free();
  }

  async #floats(buffer: GpuBuffer, count: number, start = 0): Promise<Float32Array> {
    return new Float32Array(await this.#options.gpu.read(buffer, 4 * start, 4 * count));
  }

  /** What `work` gives; when it fails, the output is freed. */
  async #with<R>(output: GpuTensor, work: () => Promise<R>): Promise<R> {
    try {
      return await work();
    } catch (error) {
      this.#tensors.free(output);
      throw error;
    }
  }

  /** To be called before anything that writes to the rows: they fail when its commands do. */
  #change(): void {
    this.#check();
    this.#options.gpu.touch({ fail: (error) => this.#failed ??= error });
  }

  #check(): void {
    if (this.#failed) throw this.#failed;
  }
}

/** m + ln l of pairs (m, l). */
function logSums(pairs: Float32Array): Float32Array {
  return Float32Array.from({ length: pairs.length / 2 }, (_, i) => pairs[2 * i] + Math.log(pairs[2 * i + 1]));
}

/** With zeros behind, to a whole number of fours. */
function fourByFour(numbers: Float32Array): Float32Array {
  const padded = new Float32Array(Math.ceil(numbers.length / 4) * 4);
  padded.set(numbers);
  return padded;
}
