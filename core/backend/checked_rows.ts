/**
 * The contract of `LayerRows`, held in one place. It knows each head's length and refuses what does not fit, so that
 * what a backend writes may trust its caller. A refused call reaches nothing and changes nothing.
 */
import {
  BIAS_BYTES,
  type CacheType,
  checkCacheType,
  headBytes,
  packs,
  partsOf,
  storable,
  unstorable,
} from "../cache/entry_type.ts";
import { emptyPart, packedAfter, type PackedHead, type Part } from "../cache/packed.ts";
import { checkRotation, type KeyRotation } from "../measure/rotation.ts";
import type { Needs, NormKind, Observation } from "../policy/policy.ts";
import type { AttentionShape } from "../shape.ts";
import type {
  AttentionOutputs,
  AttentionWants,
  CopiedRows,
  DecodeOutputs,
  Foresight,
  LayerRows,
  RefittedRows,
  ThinKeys,
  TrustingRows,
} from "./interface.ts";
import { afterwards, checkForesight, checkThin, reducedBytes, type ReducedHead } from "./reduced.ts";
import type { Tensor } from "./tensor.ts";

/** Most heads, KV heads, and numbers of a row: models have far fewer, and the kernels' products of them fit 32 bits. */
const MOST_SIZE = 4096;
/** Most rows to reserve per head, or to look back. */
const MOST_RESERVE = 2 ** 28;
/** Widest pooling kernel. */
const MOST_KERNEL = 1023;

/**
 * Empty rows for one layer: `create` makes them for a shape that has been checked.
 * @throws RangeError for a shape, a reach or a reserve that makes no sense; PalisadeError `cache-type.unknown`; as `create`.
 */
export function checkedRows<T extends Tensor>(
  { heads, kvHeads, headDim, reach, nullLogits }: AttentionShape,
  reserve: number,
  type: CacheType,
  create: (shape: AttentionShape) => TrustingRows<T>,
): LayerRows<T> {
  const fits = [heads, kvHeads, headDim].every((size) => Number.isInteger(size) && size > 0 && size <= MOST_SIZE);
  if (!fits || heads % kvHeads !== 0) {
    throw new RangeError(`Cannot hold ${heads} heads over ${kvHeads} KV heads of width ${headDim}`);
  }
  if (reach !== undefined && !(Number.isInteger(reach) && reach >= 1 && reach <= MOST_RESERVE)) {
    throw new RangeError(`Cannot look back ${reach} rows: want 1 or more`);
  }
  if (nullLogits && !(nullLogits.length === heads && nullLogits.every(Number.isFinite))) {
    throw new RangeError(`Null logits: want ${heads} finite ones`);
  }
  if (!Number.isInteger(reserve) || reserve < 0 || reserve > MOST_RESERVE) {
    throw new RangeError(`Cannot reserve ${reserve} rows`);
  }
  checkCacheType(type);
  const shape = { heads, kvHeads, headDim, ...(reach !== undefined && { reach }), ...(nullLogits && { nullLogits }) };
  return new CheckedRows(create(shape), shape, type, new Int32Array(kvHeads));
}

/**
 * Refuses lists that don't name rows of each head, ascending and without repeats.
 * @throws RangeError
 */
export function checkKept(kept: readonly Int32Array[], lengths: ArrayLike<number>): void {
  if (kept.length !== lengths.length) {
    throw new RangeError(`Cannot compact ${lengths.length} heads by ${kept.length} lists`);
  }
  for (let head = 0; head < kept.length; head++) {
    const rows = kept[head], length = lengths[head];
    for (let i = 0, before = -1; i < rows.length; before = rows[i++]) {
      if (rows[i] > before && rows[i] < length) continue;
      throw new RangeError(`Kept rows of head ${head}: want ascending, unique and below ${length}, got ${rows[i]}`);
    }
  }
}

class CheckedRows<T extends Tensor> implements LayerRows<T> {
  readonly shape: AttentionShape;
  readonly type: CacheType;
  readonly #rows: TrustingRows<T>;
  /** Rows of each KV head. */
  readonly #lengths: Int32Array;
  /** How many of them, from the first on, have a bias. */
  readonly #biased: Int32Array;
  /** What each has lost of its keys, or reads by. */
  readonly #reduced: ReducedHead[];
  /** How many of them, from the first on, are packed. */
  readonly #packed: Int32Array;
  #freed = false;
  readonly unmaskedAttention?: LayerRows<T>["unmaskedAttention"];
  readonly convolve?: LayerRows<T>["convolve"];
  readonly refit?: LayerRows<T>["refit"];
  readonly pack?: LayerRows<T>["pack"];
  readonly thin?: LayerRows<T>["thin"];
  readonly foresee?: LayerRows<T>["foresee"];

  constructor(
    rows: TrustingRows<T>,
    shape: AttentionShape,
    type: CacheType,
    lengths: Int32Array,
    biased = new Int32Array(lengths.length),
    reduced: readonly ReducedHead[] = Array.from(lengths, () => ({})),
    packed = new Int32Array(lengths.length),
  ) {
    this.#reduced = [...reduced];
    this.#rows = rows;
    this.shape = shape;
    this.type = type;
    this.#lengths = lengths;
    this.#biased = biased;
    this.#packed = packed;
    if (rows.unmaskedAttention) {
      this.unmaskedAttention = async (queries, count, want) => {
        this.#checkAlive();
        checkFloats("queries", queries, count, shape.heads * shape.headDim);
        this.#checkLevel("attend to all");
        this.#checkWhole("attend to all");
        if (lengths[0] === 0) throw new RangeError("Cannot attend to no rows");
        checkWeights(want, count);
        return await rows.unmaskedAttention!(queries, count, want);
      };
    }
    if (rows.convolve && type === "f32" && shape.heads === 2 * shape.kvHeads) {
      this.convolve = async (queries, count, taps) => {
        this.#checkQueries(queries, count);
        this.#checkLevel("convolve");
        const channels = shape.heads * shape.headDim;
        checkFloats("taps", taps, Math.ceil(taps.length / channels), channels);
        return await rows.convolve!(queries, count, taps);
      };
    }
    if (rows.pack) this.pack = (given) => this.#pack(given);
    if (rows.refit) this.refit = (kvHead, refitted) => this.#refit(kvHead, refitted);
    if (shape.reach !== undefined) return;
    if (rows.thin) this.thin = (kvHead, keys) => this.#thin(kvHead, keys);
    if (rows.foresee) this.foresee = (kvHead, foresight) => this.#foresee(kvHead, foresight);
  }

  length(kvHead: number): number {
    this.#checkHead(kvHead);
    return this.#lengths[kvHead];
  }

  get liveBytes(): number {
    const sum = (counts: Int32Array) => counts.reduce((all, rows) => all + rows, 0);
    const whole = this.#lengths.reduce(
      (bytes, length, head) => bytes + headBytes(this.shape.headDim, this.type, length, this.#packed[head]),
      sum(this.#biased) * BIAS_BYTES,
    );
    if (this.#freed) return whole;
    const beside = (head: ReducedHead, i: number) =>
      reducedBytes(head, this.#lengths[i], this.shape.headDim, this.type);
    return this.#reduced.reduce((bytes, head, i) => bytes + beside(head, i), whole);
  }

  get allocatedBytes(): number {
    return this.#freed ? 0 : this.#rows.allocatedBytes;
  }

  append(keys: T, values: T, count: number): void {
    this.#checkAlive();
    const each = this.shape.kvHeads * this.shape.headDim;
    checkFloats("keys", keys, count, each);
    checkFloats("values", values, count, each);
    // A device looks at its own numbers.
    const types = partsOf(this.type);
    for (const [numbers, type] of [[keys, types.keys], [values, types.values]] as const) {
      if (numbers instanceof Float32Array && !storable(numbers, type)) throw unstorable(this.type);
    }
    this.#rows.append(keys, values, count);
    for (let head = 0; head < this.#lengths.length; head++) this.#lengths[head] += count;
  }

  async prefillAttention(queries: T, count: number, want?: AttentionWants): Promise<AttentionOutputs<T>> {
    this.#checkQueries(queries, count);
    checkWeights(want, count);
    this.#checkLevel("attend causally");
    this.#checkWhole("attend causally");
    return await this.#rows.prefillAttention(queries, count, want);
  }

  async decodeAttention(
    queries: T,
    count: number,
    want?: { probabilities?: boolean },
  ): Promise<DecodeOutputs<T>> {
    this.#checkQueries(queries, count);
    return await this.#rows.decodeAttention(queries, count, want);
  }

  async observe(queries: T, window: number, needs: Needs): Promise<Partial<Observation>> {
    this.#checkAlive();
    this.#checkLevel("observe");
    this.#checkWhole("observe");
    if (needs.window?.length) this.#checkWindow(queries, window, needs.kernel);
    return await this.#rows.observe(queries, window, needs);
  }

  async valueNorms(wo: Float32Array | T, width: number, kind?: NormKind): Promise<Float32Array> {
    this.#checkAlive();
    checkFloats("wo", wo, width, this.shape.heads * this.shape.headDim);
    this.#checkLevel("give value norms");
    this.#checkWhole("give value norms");
    return await this.#rows.valueNorms(wo, width, kind);
  }

  compact(kept: readonly Int32Array[]): void {
    this.#checkAlive();
    checkKept(kept, this.#lengths);
    this.#rows.compact(kept);
    kept.forEach((rows, head) => {
      this.#biased[head] = rows.filter((row) => row < this.#biased[head]).length;
      this.#reduced[head] = afterwards(this.#reduced[head], rows);
      this.#packed[head] = packedAfter(rows, this.#packed[head]);
      this.#lengths[head] = rows.length;
    });
  }

  truncate(lengths: ArrayLike<number>): void {
    this.#checkAlive();
    const fits = lengths.length === this.#lengths.length &&
      this.#lengths.every((rows, head) =>
        Number.isInteger(lengths[head]) && lengths[head] >= 0 && lengths[head] <= rows
      );
    if (!fits) throw new RangeError(`Cannot truncate to ${Array.from(lengths)}: want a length within each head`);
    this.#rows.truncate(lengths);
    this.#lengths.set(lengths);
    for (const counts of [this.#biased, this.#packed]) {
      counts.forEach((rows, head) => counts[head] = Math.min(rows, lengths[head]));
    }
    this.#reduced.forEach((head, i) => this.#reduced[i] = afterwards(head, lengths[i]));
  }

  #thin(kvHead: number, keys: ThinKeys): void {
    this.#checkHead(kvHead);
    this.#checkPlain();
    const length = this.#lengths[kvHead], head = this.#reduced[kvHead];
    checkThin(keys, head, length, this.shape.headDim);
    this.#rows.thin!(kvHead, keys);
    this.#reduced[kvHead] = { thin: { channels: keys.channels.slice(), rows: length - keys.recent } };
  }

  #checkPlain(): void {
    const { keys, values } = partsOf(this.type);
    if (keys !== values || keys === "int4") {
      throw new RangeError(`Cannot leave out channels of rows of type ${this.type}`);
    }
  }

  #foresee(kvHead: number, foresight: Foresight): void {
    this.#checkHead(kvHead);
    this.#checkPlain();
    checkForesight(foresight, this.#reduced[kvHead], this.shape.headDim);
    this.#rows.foresee!(kvHead, foresight);
    this.#reduced[kvHead] = { foresight };
  }

  #refit(kvHead: number, { values, bias }: RefittedRows): void {
    this.#checkHead(kvHead);
    const length = this.#lengths[kvHead];
    if (this.#reduced[kvHead].thin) throw new RangeError(`Cannot refit KV head ${kvHead}: its keys are thin`);
    if (length === 0) throw new RangeError(`Cannot refit KV head ${kvHead}: it has no rows`);
    checkFloats("values", values, length, this.shape.headDim);
    checkFloats("biases", bias, length, 1);
    if (!bias.every(Number.isFinite)) throw new RangeError("Cannot refit: a bias is not finite");
    if (!storable(values, partsOf(this.type).values)) throw unstorable(this.type);
    this.#rows.refit!(kvHead, { values, bias });
    this.#biased[kvHead] = length;
  }

  #pack(given?: readonly (PackedHead | undefined)[]): void {
    this.#checkAlive();
    if (!packs(this.type)) return;
    given?.forEach((head, h) => this.#checkPacked(head, h));
    if (given && given.length !== this.#lengths.length) {
      throw new RangeError(`Cannot pack ${this.#lengths.length} heads as ${given.length}`);
    }
    this.#rows.pack!(given);
    this.#lengths.forEach((length, head) => this.#packed[head] = given ? given[head]?.rows ?? 0 : length);
  }

  #checkPacked(head: PackedHead | undefined, h: number): void {
    if (!head) return;
    const types = partsOf(this.type), { headDim } = this.shape;
    const fits = Number.isInteger(head.rows) && head.rows >= 0 && head.rows <= this.#lengths[h] &&
      this.#packed[h] === 0 &&
      (["keys", "values"] satisfies Part[]).every((part) => {
        if (types[part] !== "int4") return head[part] === undefined;
        const wanted = emptyPart(part, head.rows, headDim), got = head[part];
        return got && (["codes", "scales", "zeros"] as const).every((name) => got[name].length === wanted[name].length);
      });
    if (!fits) throw new RangeError(`Cannot pack head ${h}: the packed rows don't fit its ${this.#lengths[h]} rows`);
  }

  async rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    this.#checkAlive();
    if (moves.length !== this.#lengths.length || moves.some((list, head) => list.length !== this.#lengths[head])) {
      throw new RangeError(`Cannot turn keys by ${moves.map(({ length }) => length)} moves: want ${this.#lengths}`);
    }
    checkRotation(this.shape.headDim, rotation);
    if (this.#reduced.some(({ thin, foresight }) => thin || foresight)) {
      throw new RangeError("Cannot turn keys that are thin or read by channels");
    }
    await this.#rows.rotateKeys(moves, rotation);
    this.#packed.fill(0);
  }

  async clone(): Promise<LayerRows<T>> {
    this.#checkAlive();
    const [lengths, biased, packed] = [this.#lengths, this.#biased, this.#packed].map((counts) => counts.slice());
    return new CheckedRows(await this.#rows.clone(), this.shape, this.type, lengths, biased, this.#reduced, packed);
  }

  async copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows> {
    this.#checkHead(kvHead);
    const length = this.#lengths[kvHead], outside = wanted?.find((row) => row < 0 || row >= length);
    if (outside !== undefined) {
      throw new RangeError(`Cannot copy row ${outside} of head ${kvHead}: it has ${length}`);
    }
    return await this.#rows.copyRows(kvHead, wanted);
  }

  free(): void {
    if (this.#freed) return;
    this.#freed = true;
    this.#lengths.fill(0);
    this.#biased.fill(0);
    this.#packed.fill(0);
    this.#rows.free();
  }

  #checkAlive(): void {
    if (this.#freed) throw new RangeError("Cannot use rows that were freed");
  }

  #checkHead(kvHead: number): void {
    this.#checkAlive();
    if (this.#lengths[kvHead] === undefined) {
      throw new RangeError(`No KV head ${kvHead}: there are ${this.#lengths.length}`);
    }
  }

  #checkQueries(queries: T, count: number): void {
    this.#checkAlive();
    checkFloats("queries", queries, count, this.shape.heads * this.shape.headDim);
    for (const length of this.#lengths) {
      if (count > length) throw new RangeError(`Cannot attend with ${count} queries over ${length} rows`);
    }
  }

  #checkLevel(action: string): void {
    for (const length of this.#lengths) {
      if (length !== this.#lengths[0]) throw new RangeError(`Cannot ${action}: the heads have different lengths`);
    }
  }

  #checkWhole(action: string): void {
    if (this.#reduced.some(({ thin }) => thin)) throw new RangeError(`Cannot ${action}: keys are thin`);
  }

  #checkWindow(queries: T, window: number, kernel?: number): void {
    const length = this.#lengths[0];
    if (!Number.isInteger(window) || window < 1 || window > length) {
      throw new RangeError(`Cannot observe a window of ${window} queries over ${length} rows`);
    }
    if (kernel !== undefined && !(kernel % 2 === 1 && kernel <= MOST_KERNEL)) {
      throw new RangeError(`Pooling kernel ${kernel}: want an odd integer from 1 to ${MOST_KERNEL}`);
    }
    checkFloats("queries", queries, window, this.shape.heads * this.shape.headDim);
  }
}

function checkFloats(name: string, floats: Tensor, count: number, each: number): void {
  if (!Number.isInteger(count) || count < 1 || floats.length !== count * each) {
    throw new RangeError(`${name} have ${floats.length} floats: want ${count} × ${each}`);
  }
}

function checkWeights(want: AttentionWants | undefined, count: number): void {
  const weights = want?.rowWeights;
  if (weights && weights.length !== count) throw new RangeError(`Cannot weigh ${count} queries by ${weights.length}`);
}
