/** Keys and values of one layer in the kernels' memory: copies in and out; the arithmetic is the kernels' or `core`'s. */
import { concatenate } from "../core/concatenate.ts";
import {
  type AttentionOutputs,
  type AttentionWants,
  type BackendMemory,
  type CopiedRows,
  type DecodeOutputs,
  type Foresight,
  type RefittedRows,
  ROW_PAGE,
  type ThinKeys,
  type TrustingRows,
} from "../core/backend/interface.ts";
import type { Tensors } from "../core/backend/tensor.ts";
import { BIAS_BYTES, type CacheType, packs, partsOf, ROW_TYPES } from "../core/cache/entry_type.ts";
import { emptyPart, type PackedHead, type PackedPart, type Part } from "../core/cache/packed.ts";
import type { Needs, NormKind, Observation, Reduction } from "../core/policy/policy.ts";
import { type KeyRotation, rotateRows } from "../core/measure/rotation.ts";
import type { AttentionShape } from "../core/shape.ts";
import type { Buffers, Kernels } from "./module.ts";

/** Inputs and outputs pass through buffers of about this size, so that long inputs don't grow the memory. */
const BUFFER_BYTES = 2 << 20;

/** Counts the bytes of all pages of a backend. */
export class PageMeter {
  #bytes = 0;
  #high = 0;

  change(bytes: number): void {
    this.#bytes += bytes;
    this.#high = Math.max(this.#high, this.#bytes);
  }

  memory(wasmBytes: number): BackendMemory {
    return { allocatedBytes: this.#bytes, highWaterBytes: this.#high, wasmBytes };
  }
}

/** What all rows of a backend share. */
export interface RowsPlace {
  readonly kernels: Kernels;
  readonly meter: PageMeter;
  /** Where attention outputs come from. */
  readonly tensors: Tensors<Float32Array>;
}

/** See `LayerRows` for the meaning of each method, `CheckedRows` for what they may trust. */
export class WasmRows implements TrustingRows<Float32Array> {
  readonly shape: AttentionShape;
  readonly type: CacheType;
  readonly #place: RowsPlace;
  readonly #kernels: Kernels;
  readonly #whole: AttentionShape;
  /** Rows of each KV head; the kernels keep the same numbers. */
  readonly #lengths: Int32Array;
  #handle: number;
  #allocated = 0;
  /** Whether any row may have a bias. */
  #refitted = false;
  /** Channels of thin heads, and how heads are read. */
  readonly #thin = new Map<number, Int32Array>();
  readonly #foresight = new Map<number, Foresight>();

  /** `whole`: the layer of which `shape` is some heads; inputs are cut as for it, so that the results have its bits. */
  constructor(
    place: RowsPlace,
    shape: AttentionShape,
    reserve: number,
    type: CacheType,
    whole = shape,
  ) {
    const { heads, kvHeads, headDim, reach = 0, nullLogits } = shape, { kernels } = place;
    this.shape = shape;
    this.type = type;
    this.#place = place;
    this.#kernels = kernels;
    this.#whole = whole;
    this.#lengths = new Int32Array(kvHeads);
    const [k, v] = [partsOf(type).keys, partsOf(type).values].map((each) => ROW_TYPES.indexOf(each));
    const kind = k === v ? k : 16 + 4 * k + v;
    const handle = kernels.call.rows_new(heads, kvHeads, headDim, reserve, kind, reach);
    this.#handle = kernels.check(handle, `reserve ${reserve} rows`);
    if (nullLogits) this.#takeNulls(nullLogits);
    this.#count();
  }

  #takeNulls(logits: Float32Array): void {
    this.#kernels.withBuffers((buffers) => {
      const given = buffers.from(logits);
      this.#do("take null logits", (call) => call.rows_nulls(this.#handle, given));
    });
  }

  get allocatedBytes(): number {
    return this.#allocated;
  }

  append(keys: Float32Array, values: Float32Array, count: number): void {
    const before = this.#lengths.slice(), each = this.shape.kvHeads * this.shape.headDim;
    try {
      this.#inChunks(count, 2 * each, (buffers, first, rows) => {
        const part = (floats: Float32Array) => buffers.from(floats.subarray(first * each, (first + rows) * each));
        this.#do("append rows", (call) => call.rows_append(this.#handle, part(keys), part(values), rows));
        this.#resized(this.#lengths.map((length) => length + rows));
      });
    } catch (error) {
      this.truncate(before);
      throw error;
    }
  }

  /** `behind`: rows behind the queries' own, which they don't see. */
  // deno-lint-ignore require-await -- a failure must reject, not throw
  async prefillAttention(
    queries: Float32Array,
    count: number,
    want: AttentionWants = {},
    behind = 0,
  ): Promise<AttentionOutputs<Float32Array>> {
    return this.#attendMany(queries, count, want, true, behind);
  }

  // deno-lint-ignore require-await -- a failure must reject, not throw
  async unmaskedAttention(
    queries: Float32Array,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs<Float32Array>> {
    return this.#attendMany(queries, count, want, false);
  }

  #attendMany(
    queries: Float32Array,
    count: number,
    want: AttentionWants,
    masked: boolean,
    behind = 0,
  ): AttentionOutputs<Float32Array> {
    const { heads } = this.shape, rows = this.#lengths[0];
    const pitch = Math.ceil(rows / ROW_PAGE) * ROW_PAGE;
    const logSumExp = want.logSumExp ? new Float32Array(count * heads) : undefined;
    return this.#kernels.withBuffers((columns) => {
      const sum = columns.zeros(heads * pitch * 4, want.columnSum ?? false);
      const max = columns.zeros(heads * pitch * 4, want.columnMax ?? false);
      const output = this.#attend(queries, count, (call, chunk) => {
        const lse = chunk.buffers.zeros(chunk.count * heads * 4, want.logSumExp ?? false);
        const weights = want.rowWeights
          ? chunk.buffers.from(want.rowWeights.subarray(chunk.first, chunk.first + chunk.count))
          : -1;
        const result = call.rows_attend(...chunk.arguments, lse, sum, max, -1, Number(masked), weights);
        if (logSumExp && result === 0) {
          chunk.buffers.read(lse, logSumExp.subarray(chunk.first * heads, (chunk.first + chunk.count) * heads));
        }
        return result;
      }, behind);
      const unpadded = (handle: number) =>
        handle < 0 ? undefined : unpad(columns.read(handle, new Float32Array(heads * pitch)), heads, rows);
      return { output, columnSum: unpadded(sum), columnMax: unpadded(max), logSumExp };
    });
  }

  // deno-lint-ignore require-await -- a failure must reject, not throw
  async decodeAttention(
    queries: Float32Array,
    count: number,
    want: { probabilities?: boolean } = {},
  ): Promise<DecodeOutputs<Float32Array>> {
    const { heads, kvHeads } = this.shape, lengths = this.#lengths;
    const perHead = Array.from({ length: heads }, (_, h) => lengths[Math.floor(h / (heads / kvHeads))]);
    const all = new Float32Array(want.probabilities ? perHead.reduce((sum, rows) => sum + rows, 0) : 0);
    const output = this.#attend(queries, count, (call, chunk) => {
      const last = chunk.first + chunk.count === count && want.probabilities === true;
      const probabilities = chunk.buffers.zeros(all.byteLength, last);
      const sparse = count === 1 && this.#foresight.size > 0;
      const result = call.rows_attend(...chunk.arguments, -1, -1, -1, probabilities, sparse ? 2 : 1, -1);
      if (last && result === 0) chunk.buffers.read(probabilities, all);
      return result;
    });
    return want.probabilities ? { output, probabilities: split(all, perHead) } : { output };
  }

  // deno-lint-ignore require-await -- a failure must reject, not throw
  async observe(queries: Float32Array, window: number, needs: Needs): Promise<Partial<Observation>> {
    const measured = needs.window?.length ? this.#observeWindow(queries, window, needs) : {};
    return needs.rows ? { ...measured, ...this.#allRows() } : measured;
  }

  // deno-lint-ignore require-await -- a failure must reject, not throw
  async valueNorms(wo: Float32Array, width: number, kind: NormKind = "l1"): Promise<Float32Array> {
    const { heads, kvHeads, headDim } = this.shape, handle = this.#handle, each = heads * headDim;
    const floats = kvHeads * this.#lengths[0];
    return this.#kernels.withBuffers((outputs) => {
      const norms = outputs.zeros(floats * 4), gram = outputs.zeros(each * headDim * 4, kind === "l2");
      this.#inChunks(width, each, (buffers, first, rows) => {
        const part = buffers.from(wo.subarray(first * each, (first + rows) * each));
        this.#do(
          "measure value norms",
          (call) =>
            kind === "l2" ? call.rows_gram(handle, part, rows, gram) : call.rows_norms(handle, part, rows, norms),
        );
      });
      if (kind === "l2") this.#do("measure value norms", (call) => call.rows_gram_norms(handle, gram, norms));
      return outputs.read(norms, new Float32Array(floats));
    });
  }

  compact(kept: readonly Int32Array[]): void {
    const counts = Int32Array.from(kept, (rows) => rows.length);
    this.#kernels.withBuffers((buffers) => {
      const all = concatenate(kept, Int32Array);
      const [list, sizes] = [buffers.from(all), buffers.from(counts)];
      this.#do("compact rows", (call) => call.rows_compact(this.#handle, list, all.length, sizes));
    });
    this.#resized(counts);
  }

  truncate(lengths: ArrayLike<number>): void {
    const wanted = Int32Array.from(lengths);
    this.#kernels.withBuffers((buffers) => {
      const list = buffers.from(wanted);
      this.#do("truncate rows", (call) => call.rows_truncate(this.#handle, list));
    });
    this.#resized(wanted);
  }

  // deno-lint-ignore require-await -- as above
  async rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    const heads = moves.map((list, h) => {
      const rows = this.copyNow(h);
      rotateRows(rows.keys, this.shape.headDim, list, rotation);
      return { ...rows, packed: undefined };
    });
    this.truncate(new Int32Array(heads.length));
    this.fill(heads);
  }

  // deno-lint-ignore require-await -- as above
  async clone(): Promise<WasmRows> {
    const copy = new WasmRows(this.#place, this.shape, 0, this.type, this.#whole);
    try {
      copy.fill(Array.from(this.#lengths, (_, h) => this.copyNow(h)));
      this.#thin.forEach((channels, h) => copy.thin(h, { channels, recent: this.#lengths[h] - this.#thinned(h) }));
      this.#foresight.forEach((foresight, h) => copy.foresee(h, foresight));
    } catch (error) {
      copy.free();
      throw error;
    }
    return copy;
  }

  // deno-lint-ignore require-await -- as above
  async copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows> {
    return this.copyNow(kvHead, wanted);
  }

  /** `copyRows`, at once. */
  copyNow(kvHead: number, wanted?: Int32Array): CopiedRows {
    const count = wanted?.length ?? this.#lengths[kvHead], floats = count * this.shape.headDim;
    return this.#kernels.withBuffers((buffers) => {
      const list = wanted ? buffers.from(wanted) : -1;
      const [keys, values] = [buffers.zeros(floats * 4), buffers.zeros(floats * 4)];
      this.#do("copy rows", (call) => call.rows_copy(this.#handle, kvHead, list, count, keys, values));
      return {
        keys: buffers.read(keys, new Float32Array(floats)),
        values: buffers.read(values, new Float32Array(floats)),
        ...this.#biasOf(kvHead, wanted),
        ...(!wanted && this.#packedOf(kvHead)),
      };
    });
  }

  pack(given?: readonly (PackedHead | undefined)[]): void {
    if (!given) this.#do("pack rows", (call) => call.rows_pack(this.#handle));
    given?.forEach((head, h) => {
      if (!head || head.rows === 0) return;
      this.#kernels.withBuffers((buffers) => {
        const [keys, values] = [head.keys, head.values].map((part) => part ? buffers.from(bytesOf(part)) : -1);
        this.#do("pack rows", (call) => call.rows_take_packed(this.#handle, h, head.rows, keys, values));
      });
    });
    this.#count();
  }

  #packedOf(kvHead: number): { packed?: PackedHead } {
    if (!packs(this.type)) return {};
    const rows = this.#kernels.check(this.#kernels.call.rows_packed(this.#handle, kvHead, -1, -1), "copy packed rows");
    if (rows === 0) return {};
    const types = partsOf(this.type), { headDim } = this.shape;
    return this.#kernels.withBuffers((buffers) => {
      const part = (name: Part) => {
        if (types[name] !== "int4") return undefined;
        const { byteLength } = bytesOf(emptyPart(name, rows, headDim));
        return { handle: buffers.zeros(byteLength), bytes: new Uint8Array(byteLength) };
      };
      const [keys, values] = [part("keys"), part("values")];
      const [k, v] = [keys, values].map((each) => each?.handle ?? -1);
      this.#do("copy packed rows", (call) => Math.min(0, call.rows_packed(this.#handle, kvHead, k, v)));
      const read = (name: Part, each: typeof keys) =>
        each && { [name]: partOf(buffers.read(each.handle, each.bytes), emptyPart(name, rows, headDim)) };
      return { packed: { rows, ...read("keys", keys), ...read("values", values) } };
    });
  }

  refit(kvHead: number, { values, bias }: RefittedRows): void {
    this.#refitted = true;
    this.#kernels.withBuffers((buffers) => {
      const [numbers, added] = [buffers.from(values), buffers.from(bias)];
      this.#do("refit rows", (call) => call.rows_refit(this.#handle, kvHead, numbers, added));
    });
    this.#count();
  }

  thin(kvHead: number, { channels, recent }: ThinKeys): void {
    this.#kernels.withBuffers((buffers) => {
      const list = buffers.from(channels);
      this.#do("thin keys", (call) => call.rows_thin(this.#handle, kvHead, list, channels.length, recent));
    });
    this.#thin.set(kvHead, channels.slice());
    this.#count();
  }

  foresee(kvHead: number, foresight: Foresight): void {
    const { channels, entries, sinks, recent } = foresight;
    this.#kernels.withBuffers((buffers) => {
      const list = buffers.from(channels);
      this.#do(
        "foresee rows",
        (call) => call.rows_foresee(this.#handle, kvHead, list, channels.length, entries, sinks, recent),
      );
    });
    this.#foresight.set(kvHead, { ...foresight, channels: channels.slice() });
    this.#count();
  }

  /** Rows of a head whose keys are thin. */
  #thinned(kvHead: number): number {
    return this.#kernels.check(this.#kernels.call.rows_thinned(this.#handle, kvHead), "count thin rows");
  }

  /** Of a head's rows, or of the `wanted` ones; nothing where none has a bias. */
  #biasOf(kvHead: number, wanted?: Int32Array): { bias?: Float32Array } {
    const biased = this.#biased(kvHead);
    if (biased === 0) return {};
    const all = new Float32Array(this.#lengths[kvHead]);
    this.#kernels.withBuffers((buffers) => {
      const out = buffers.zeros(4 * biased);
      this.#do("copy biases", (call) => call.rows_bias(this.#handle, kvHead, out));
      buffers.read(out, all.subarray(0, biased));
    });
    return { bias: wanted ? Float32Array.from(wanted, (row) => all[row]) : all };
  }

  /** Rows of a head, from the first on, that have a bias. */
  #biased(kvHead: number): number {
    if (!this.#refitted) return 0;
    return this.#kernels.check(this.#kernels.call.rows_bias(this.#handle, kvHead, -1), "count biases");
  }

  /**
   * Gives empty heads their rows, `[length, headDim]` each, as `copyRows` gave them. The kernels append to all heads
   * alike, so it goes page by page: heads that have ended take zeros, which are dropped again.
   */
  fill(heads: readonly CopiedRows[]): void {
    const { headDim } = this.shape;
    const ends = heads.map(({ keys }) => keys.length / headDim);
    const longest = Math.max(...ends);
    for (let first = 0; first < longest; first += ROW_PAGE) {
      const count = Math.min(ROW_PAGE, longest - first);
      const keys = interleaved(heads.map((head) => head.keys), first, count, headDim);
      this.append(keys, interleaved(heads.map((head) => head.values), first, count, headDim), count);
      this.truncate(ends.map((end) => Math.min(end, first + count)));
    }
    heads.forEach(({ values, bias }, h) => {
      if (bias && bias.length > 0) this.refit(h, { values, bias });
    });
    // Refitted rows are packed already: they are taken as they are.
    if (heads.some(({ packed }) => packed)) this.pack(heads.map(({ packed }) => packed));
  }

  free(): void {
    this.#do("free rows", (call) => call.rows_free(this.#handle));
    this.#place.meter.change(-this.#allocated);
    this.#allocated = 0;
  }

  /** Runs `attend` over chunks of the queries; the chunk's buffers hold its queries and outputs. */
  #attend(
    queries: Float32Array,
    count: number,
    attend: (call: Kernels["call"], chunk: Chunk) => number,
    behind = 0,
  ): Float32Array {
    const handle = this.#handle, each = this.shape.heads * this.shape.headDim;
    const output = this.#place.tensors.room(count * each);
    this.#inChunks(count, 2 * each, (buffers, first, rows) => {
      const range = [first * each, (first + rows) * each];
      const [q, out] = [buffers.from(queries.subarray(...range)), buffers.room(rows * each * 4)];
      const chunk: Chunk = {
        buffers,
        first,
        count: rows,
        arguments: [handle, q, rows, behind + count - first - rows, out],
      };
      this.#do("attend", (call) => attend(call, chunk));
      buffers.read(out, output.subarray(...range));
    });
    return output;
  }

  #observeWindow(queries: Float32Array, window: number, needs: Needs): Partial<Observation> {
    const { heads, kvHeads } = this.shape, kernel = needs.kernel ?? 5;
    const columns = kvHeads * (this.#lengths[0] - window), rows = heads * window;
    return this.#kernels.withBuffers((buffers) => {
      const sizes = { column: columns, row: rows }, wanted = needs.window ?? [];
      // One number per column of a KV head, or per row of a query head.
      const out = (name: Reduction) => buffers.zeros(sizes[PER[name]] * 4, wanted.includes(name));
      const [mean, variance, entropy] = [out("mean"), out("variance"), out("entropy")];
      const [pooledMean, pooledMax] = [out("pooledMean"), out("pooledMax")];
      const [mass, logSumExp] = [out("mass"), out("logSumExp")];
      const handles = { mean, variance, entropy, pooledMean, pooledMax, mass, logSumExp };
      const q = buffers.from(queries);
      this.#do("observe", (call) =>
        call.rows_observe(
          this.#handle,
          q,
          window,
          kernel,
          mean,
          variance,
          entropy,
          pooledMean,
          pooledMax,
          mass,
          logSumExp,
        ));
      const given = REDUCTIONS.filter((name) => wanted.includes(name));
      return Object.fromEntries(
        given.map((name) => [name, buffers.read(handles[name], new Float32Array(sizes[PER[name]]))]),
      );
    });
  }

  #allRows(): CopiedRows {
    const { kvHeads, headDim } = this.shape, each = this.#lengths[0] * headDim;
    const [keys, values] = [new Float32Array(kvHeads * each), new Float32Array(kvHeads * each)];
    for (let head = 0; head < kvHeads; head++) {
      const rows = this.copyNow(head);
      keys.set(rows.keys, head * each);
      values.set(rows.values, head * each);
    }
    return { keys, values };
  }

  #do(action: string, body: (call: Kernels["call"]) => number): void {
    this.#kernels.check(body(this.#kernels.call), action);
  }

  /** Cuts `count` items of `floats` each into chunks, each with buffers of its own. */
  #inChunks(count: number, floats: number, body: (buffers: Buffers, first: number, rows: number) => void): void {
    const wholeFloats = floats * this.#whole.heads / this.shape.heads;
    const most = Math.max(1, Math.floor(BUFFER_BYTES / 4 / wholeFloats));
    for (let first = 0; first < count; first += most) {
      this.#kernels.withBuffers((buffers) => body(buffers, first, Math.min(most, count - first)));
    }
  }

  #resized(lengths: Int32Array): void {
    this.#lengths.set(lengths);
    this.#count();
  }

  /** Reads the pages anew. */
  #count(): void {
    const quads = this.#kernels.check(this.#kernels.call.rows_quads(this.#handle), "count bytes");
    const biased = this.#lengths.reduce((sum, _, head) => sum + this.#biased(head), 0);
    const reduced = this.#thin.size + this.#foresight.size > 0;
    const packed = reduced ? this.#kernels.check(this.#kernels.call.rows_packed_bytes(this.#handle), "count bytes") : 0;
    const bytes = quads * 16 + biased * BIAS_BYTES + packed;
    this.#place.meter.change(bytes - this.#allocated);
    this.#allocated = bytes;
  }
}

/** A head's packed keys or values as the kernels take them: codes, scales, zeros. */
function bytesOf({ codes, scales, zeros }: PackedPart): Uint8Array {
  const bytes = new Uint8Array(codes.length + scales.byteLength + zeros.byteLength);
  bytes.set(codes);
  for (const [halves, at] of [[scales, codes.length], [zeros, codes.length + scales.byteLength]] as const) {
    bytes.set(new Uint8Array(halves.buffer, halves.byteOffset, halves.byteLength), at);
  }
  return bytes;
}

/** The same the other way, into `part`. */
function partOf(bytes: Uint8Array, part: PackedPart): PackedPart {
  let at = 0;
  for (const numbers of [part.codes, part.scales, part.zeros]) {
    const view = new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
    view.set(bytes.subarray(at, at += view.length));
  }
  return part;
}

/** A run of queries on its way through the kernels. */
interface Chunk {
  readonly buffers: Buffers;
  readonly first: number;
  readonly count: number;
  /** The arguments of `rows_attend` up to the outputs. */
  readonly arguments: [number, number, number, number, number];
}

/** Of what each reduction has one number: a column of a KV head, or a row of a query head. */
const PER = {
  mean: "column",
  variance: "column",
  entropy: "row",
  pooledMean: "column",
  pooledMax: "column",
  mass: "row",
  logSumExp: "row",
} as const satisfies Record<Reduction, "column" | "row">;

/** All reductions, each once. */
export const REDUCTIONS = Object.keys(PER) as Reduction[];

/** `(heads, pitch)` → `(heads, rows)`. */
function unpad(padded: Float32Array, heads: number, rows: number): Float32Array {
  const pitch = padded.length / heads, out = new Float32Array(heads * rows);
  for (let h = 0; h < heads; h++) out.set(padded.subarray(h * pitch, h * pitch + rows), h * rows);
  return out;
}

/** Rows `first … first + count − 1` of every head, zeros beyond its end: `(heads, rows, dim)` → `(count, heads, dim)`. */
function interleaved(heads: readonly Float32Array[], first: number, count: number, headDim: number): Float32Array {
  const out = new Float32Array(count * heads.length * headDim);
  heads.forEach((rows, h) => {
    for (let t = 0; t < count; t++) {
      const row = rows.subarray((first + t) * headDim, (first + t + 1) * headDim);
      out.set(row, (t * heads.length + h) * headDim);
    }
  });
  return out;
}

function split(all: Float32Array, lengths: readonly number[]): Float32Array[] {
  let start = 0;
  return lengths.map((length) => all.slice(start, start += length));
}
