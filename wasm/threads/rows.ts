/**
 * Keys and values of one layer, its KV heads shared out over the threads of a crew. Where attention has too little to do
 * for that, all heads move to this thread, and out again when it has more.
 */
import type {
  AttentionOutputs,
  AttentionWants,
  CopiedRows,
  DecodeOutputs,
  TrustingRows,
} from "../../core/backend/interface.ts";
import { CACHE_TYPES, type CacheType } from "../../core/cache/entry_type.ts";
import type { Needs, NormKind, Observation } from "../../core/policy/policy.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";
import type { AttentionShape } from "../../core/shape.ts";
import type { Ask, Crew } from "./pool.ts";
import { PalisadeError } from "../../core/errors.ts";
import { REDUCTIONS, ROWS } from "./rows_service.ts";
import type { WasmBackend } from "../backend.ts";
import type { NumberArray, Parcel } from "./message.ts";
import type { WasmRows } from "../rows.ts";
import type { Worth } from "./cost.ts";

/** The heads of one thread. */
interface Share {
  readonly rank: number;
  readonly first: number;
  readonly kvHeads: number;
}

/** Where rows may be, and what it costs that they are elsewhere. */
export interface Place {
  readonly backend: WasmBackend;
  readonly crew: Crew;
  readonly worth: Worth;
}

/** What each of a layer's threads gave for a call, in the order of their heads. */
type Parts = readonly (readonly (NumberArray | undefined)[])[];

/** Runs of KV heads, as even as they come, the longer ones first; threads without heads are left out. */
export function shareHeads(kvHeads: number, threads: number): Share[] {
  const start = (rank: number) => Math.ceil(rank * kvHeads / threads);
  return Array.from({ length: threads }, (_, rank) => {
    return { rank, first: start(rank), kvHeads: start(rank + 1) - start(rank) };
  }).filter((share) => share.kvHeads > 0);
}

/** See `LayerRows` for the meaning of each method, `CheckedRows` for what they may trust. */
export class CrewRows implements TrustingRows {
  readonly #shape: AttentionShape;
  readonly #place: Place;
  readonly #crew: Crew;
  readonly #id: number;
  /** Shares of all threads when the heads are shared out, this thread's first. */
  readonly #shares: readonly Share[];
  /** Rows of each KV head. */
  readonly #lengths: Int32Array;
  #own: WasmRows;
  /** The other threads' shares; none while all heads are here. */
  #others: readonly Share[];
  /** Multiply-adds that calls since the last move could have saved with the rows elsewhere. */
  #lost = 0;
  /** Whether there was no room for a move. */
  #stays = false;
  #broken?: Error;

  private constructor(
    place: Place,
    own: WasmRows,
    shape: AttentionShape,
    lengths: Int32Array,
    id = place.crew.newId(),
  ) {
    this.#shape = shape;
    this.#place = place;
    this.#crew = place.crew;
    this.#id = id;
    this.#own = own;
    this.#shares = shareHeads(shape.kvHeads, place.crew.size);
    this.#others = own.shape.kvHeads === shape.kvHeads ? [] : this.#shares.slice(1);
    this.#lengths = lengths;
  }

  static create(place: Place, shape: AttentionShape, reserve: number, type: CacheType): CrewRows {
    const { backend, crew } = place;
    const { heads, kvHeads, headDim } = shape;
    const group = heads / kvHeads, mine = shareHeads(kvHeads, crew.size)[0].kvHeads;
    const own = backend.createPart({ heads: mine * group, kvHeads: mine, headDim }, reserve, type, shape);
    const rows = new CrewRows(place, own, shape, new Int32Array(kvHeads));
    for (const share of rows.#others) rows.#tell(share, ROWS.create, rows.#creation(share, reserve), []);
    return rows;
  }

  /** Numbers of {@link ROWS.create}. */
  #creation({ kvHeads: mine }: Share, reserve: number): number[] {
    const { heads, kvHeads, headDim } = this.#shape;
    return [mine * heads / kvHeads, mine, headDim, reserve, CACHE_TYPES.indexOf(this.#own.type), heads, kvHeads];
  }

  get allocatedBytes(): number {
    this.#alive();
    const asks = this.#askAll(ROWS.bytes, () => [[], []]);
    return this.#others.reduce(
      (sum, { rank }, i) => sum + this.#now(rank, asks[i]).numbers[0],
      this.#own.allocatedBytes,
    );
  }

  append(keys: Float32Array, values: Float32Array, count: number): void {
    this.#alive();
    const { kvHeads, headDim } = this.#shape, each = kvHeads * headDim;
    this.#own.append(this.#mine(keys, each), this.#mine(values, each), count);
    for (const share of this.#others) {
      this.#tell(share, ROWS.append, [count], [this.#part(keys, each, share), this.#part(values, each, share)]);
    }
    this.#lengths.forEach((length, h) => this.#lengths[h] = length + count);
  }

  async prefillAttention(
    queries: Float32Array,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs> {
    this.#alive();
    this.#settle(count);
    const { heads, headDim } = this.#shape, each = heads * headDim;
    const wanted = [want.columnSum, want.columnMax, want.logSumExp].map(Number).map((x) => x || 0);
    const parts = await this.#all(
      ROWS.prefill,
      (share) => [[count, ...wanted], [this.#part(queries, each, share)]],
      async () => {
        const own = await this.#own.prefillAttention(this.#mine(queries, each), count, want);
        return [own.output, own.columnSum, own.columnMax, own.logSumExp];
      },
    );
    return {
      output: this.#interleaved(parts, 0, each)!,
      columnSum: joined(parts, 1),
      columnMax: joined(parts, 2),
      logSumExp: this.#interleaved(parts, 3, heads),
    };
  }

  async decodeAttention(
    queries: Float32Array,
    count: number,
    want: { probabilities?: boolean } = {},
  ): Promise<DecodeOutputs> {
    this.#alive();
    this.#settle(count);
    if (this.#others.length === 0) return this.#own.decodeAttention(queries, count, want);
    const { heads, headDim } = this.#shape, each = heads * headDim;
    const parts = await this.#all(
      ROWS.decode,
      (share) => [[count, want.probabilities ? 1 : 0], [this.#part(queries, each, share)]],
      async () => {
        const own = await this.#own.decodeAttention(this.#mine(queries, each), count, want);
        return [own.output, ...own.probabilities ?? []];
      },
    );
    const output = this.#interleaved(parts, 0, each)!;
    if (!want.probabilities) return { output };
    return { output, probabilities: parts.flatMap((part) => part.slice(1) as Float32Array[]) };
  }

  async observe(queries: Float32Array, window: number, needs: Needs): Promise<Partial<Observation>> {
    this.#alive();
    const { heads, headDim } = this.#shape, each = heads * headDim;
    const { window: reductions = [], kernel, rows } = needs;
    const text = new TextEncoder().encode(JSON.stringify({ window: reductions, kernel, rows }));
    const asked = reductions.length > 0;
    const part = (share: Share) => asked ? this.#part(queries, each, share) : new Float32Array(0);
    const parts = await this.#all(ROWS.observe, (share) => [[window], [part(share), text]], async () => {
      const seen = await this.#own.observe(asked ? this.#mine(queries, each) : queries, window, needs);
      return [...REDUCTIONS.map((name) => seen[name]), seen.keys, seen.values];
    });
    const names = [...REDUCTIONS, "keys", "values"] as const;
    const given = names.map((name, i) => [name, joined(parts, i)] as const).filter(([, floats]) =>
      floats !== undefined
    );
    return Object.fromEntries(given);
  }

  async valueNorms(wo: Float32Array, width: number, kind: NormKind = "l1"): Promise<Float32Array> {
    this.#alive();
    const each = this.#shape.heads * this.#shape.headDim;
    const parts = await this.#all(
      ROWS.norms,
      (share) => [[width, Number(kind === "l2")], [this.#part(wo, each, share)]],
      async () => [await this.#own.valueNorms(this.#mine(wo, each), width, kind)],
    );
    return joined(parts, 0)!;
  }

  compact(kept: readonly Int32Array[]): void {
    this.#alive();
    this.#own.compact(kept.slice(0, this.#mineHeads));
    for (const share of this.#others) this.#tell(share, ROWS.compact, [], ofHeads(kept, share).map((l) => l.slice()));
    kept.forEach((rows, h) => this.#lengths[h] = rows.length);
  }

  truncate(lengths: ArrayLike<number>): void {
    this.#alive();
    const wanted = Array.from(lengths);
    this.#own.truncate(wanted.slice(0, this.#mineHeads));
    for (const share of this.#others) this.#tell(share, ROWS.truncate, ofHeads(wanted, share), []);
    this.#lengths.set(wanted);
  }

  async rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    this.#alive();
    const { pairs, rotated, frequencies } = rotation;
    const numbers = [pairs === "interleaved" ? 1 : 0, rotated, ...frequencies];
    try {
      await this.#all(
        ROWS.rotate,
        (share) => [numbers, ofHeads(moves, share).map((list) => list.slice())],
        async () => {
          await this.#own.rotateKeys(moves.slice(0, this.#mineHeads), rotation);
          return [];
        },
      );
    } catch (error) {
      // Half turned.
      this.#broken ??= error as Error;
      throw error;
    }
  }

  async clone(): Promise<TrustingRows> {
    this.#alive();
    const lengths = this.#lengths.slice(), others = this.#others, id = this.#crew.newId();
    let own: WasmRows | undefined;
    try {
      await this.#all(ROWS.clone, () => [[id], []], async () => {
        own = await this.#own.clone();
        return [];
      });
      return new CrewRows(this.#place, own!, this.#shape, lengths, id);
    } catch (error) {
      own?.free();
      this.#freeAt(others, id);
      throw error;
    }
  }

  async copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows> {
    this.#alive();
    if (kvHead < this.#mineHeads) return this.#own.copyNow(kvHead, wanted);
    const { rank, ask } = this.#askForCopy(kvHead, wanted);
    return copied(await this.#later(rank, ask));
  }

  /** All heads as `copyRows` gives them, without the event loop, so that no other call comes between. */
  #copyAllNow(): CopiedRows[] {
    return Array.from(this.#lengths, (_, kvHead) => {
      if (kvHead < this.#mineHeads) return this.#own.copyNow(kvHead);
      const { rank, ask } = this.#askForCopy(kvHead);
      return copied(this.#now(rank, ask));
    });
  }

  /** Asks the thread that has the head. */
  #askForCopy(kvHead: number, wanted?: Int32Array): { rank: number; ask: Ask } {
    const { rank, first } = this.#others.find((share) => kvHead < share.first + share.kvHeads)!;
    const numbers = [this.#id, kvHead - first];
    return { rank, ask: this.#crew.ask(rank, { operation: ROWS.copy, numbers, arrays: [wanted] }) };
  }

  free(): void {
    this.#own.free();
    this.#freeAt(this.#others);
  }

  #freeAt(shares: readonly Share[], id = this.#id): void {
    for (const { rank } of shares) {
      try {
        this.#crew.tell(rank, { operation: ROWS.free, numbers: [id], arrays: [] });
      } catch {
        // The thread has ended and its memory with it.
      }
    }
  }

  /**
   * Before a call with `queries`: moves the rows once the calls so far have lost by their place what moving costs. So no
   * sequence of calls takes more than about twice the time it would take with the best moves.
   */
  #settle(queries: number): void {
    if (this.#shares.length === 1 || this.#stays) return;
    const { heads, kvHeads, headDim } = this.#shape, { perWait, perMovedFloat } = this.#place.worth;
    const floats = 2 * headDim * this.#lengths.reduce((sum, rows) => sum + rows, 0);
    const work = queries * floats * heads / kvHeads;
    const savedByThreads = work * (1 - this.#shares[0].kvHeads / kvHeads) - perWait / 2;
    this.#lost = Math.max(0, this.#lost + (this.#others.length === 0 ? savedByThreads : -savedByThreads));
    if (this.#lost <= perMovedFloat * floats) return;
    this.#lost = 0;
    this.#move();
  }

  /** All rows to this thread, or to their owners. Where there is no room they stay for good. */
  #move(): void {
    const to = this.#others.length > 0 ? [{ rank: 0, first: 0, kvHeads: this.#shape.kvHeads }] : this.#shares;
    const [here, ...others] = to, before = { own: this.#own, others: this.#others };
    const mine = { ...this.#shape, kvHeads: here.kvHeads, heads: this.#creation(here, 0)[0] };
    let own: WasmRows | undefined;
    try {
      const heads = this.#copyAllNow();
      own = this.#place.backend.createPart(mine, Math.min(...this.#lengths), this.#own.type, this.#shape);
      own.fill(ofHeads(heads, here));
      for (const share of others) this.#giveTo(share, ofHeads(heads, share));
    } catch (error) {
      own?.free();
      this.#freeAt(others);
      if (!(error instanceof PalisadeError && error.kind === "resources") || this.#broken) throw error;
      this.#stays = true;
      return;
    }
    this.#freeAt(before.others);
    before.own.free();
    this.#own = own;
    this.#others = others;
  }

  #giveTo(share: Share, heads: readonly CopiedRows[]): void {
    const arrays = heads.flatMap(({ keys, values }) => [keys, values]);
    const commands = [[ROWS.create, this.#creation(share, 0), []], [ROWS.fill, [], arrays]] as const;
    const asks = commands.map(([operation, numbers, arrays]) =>
      this.#crew.ask(share.rank, { operation, numbers: [this.#id, ...numbers], arrays })
    );
    for (const ask of asks) this.#now(share.rank, ask);
  }

  get #mineHeads(): number {
    return this.#own.shape.kvHeads;
  }

  #tell({ rank }: Share, operation: number, numbers: readonly number[], arrays: Parcel["arrays"]): void {
    const parcel = { operation, numbers: [this.#id, ...numbers], arrays };
    this.#crew.tell(rank, parcel, (error) => this.#broken ??= error);
  }

  #askAll(operation: number, parcel: (share: Share) => [number[], Parcel["arrays"]]): Ask[] {
    return this.#others.map((share) => {
      const [numbers, arrays] = parcel(share);
      return this.#crew.ask(share.rank, { operation, numbers: [this.#id, ...numbers], arrays });
    });
  }

  #now(rank: number, ask: Ask): Parcel {
    try {
      const parcel = this.#crew.answerNow(rank, ask);
      if (!this.#broken) return parcel;
    } catch (error) {
      throw this.#broken ?? error;
    }
    throw this.#broken;
  }

  async #later(rank: number, ask: Ask): Promise<Parcel> {
    try {
      const parcel = await this.#crew.answer(rank, ask);
      if (!this.#broken) return parcel;
    } catch (error) {
      throw this.#broken ?? error;
    }
    throw this.#broken;
  }

  /** Has the others at work, does this thread's share meanwhile, and waits for the others. */
  async #all(
    operation: number,
    parcel: (share: Share) => [number[], Parcel["arrays"]],
    own: () => Promise<(Float32Array | undefined)[]>,
  ): Promise<Parts> {
    const others = this.#others, asks = this.#askAll(operation, parcel);
    const parts: (readonly (NumberArray | undefined)[])[] = [await own()];
    for (const [i, { rank }] of others.entries()) parts.push((await this.#later(rank, asks[i])).arrays);
    return parts;
  }

  /** This thread's heads of `[count, heads …]`, `each` floats a row. */
  #mine(all: Float32Array, each: number): Float32Array {
    return this.#others.length === 0 ? all : this.#part(all, each, { rank: 0, first: 0, kvHeads: this.#mineHeads });
  }

  #part(all: Float32Array, each: number, { first, kvHeads }: Share): Float32Array {
    const perHead = each / this.#shape.kvHeads, width = kvHeads * perHead, rows = all.length / each;
    const part = new Float32Array(rows * width);
    for (let t = 0; t < rows; t++) {
      const from = t * each + first * perHead;
      part.set(all.subarray(from, from + width), t * width);
    }
    return part;
  }

  /** `[count, heads of a thread …]` of each → `[count, heads …]`, `each` numbers a row. */
  #interleaved(parts: Parts, index: number, each: number): Float32Array | undefined {
    const first = parts[0][index] as Float32Array | undefined;
    if (!first || parts.length === 1) return first;
    const rows = first.length / (each / this.#shape.kvHeads * this.#mineHeads);
    const all = new Float32Array(rows * each);
    let column = 0;
    for (const part of parts) {
      const mine = part[index] as Float32Array, width = mine.length / rows;
      for (let t = 0; t < rows; t++) all.set(mine.subarray(t * width, (t + 1) * width), t * each + column);
      column += width;
    }
    return all;
  }

  #alive(): void {
    if (this.#broken) throw this.#broken;
  }
}

/** What {@link ROWS.copy} answers. */
function copied({ arrays: [keys, values] }: Parcel): CopiedRows {
  return { keys: keys as Float32Array, values: values as Float32Array };
}

function ofHeads<T>(lists: readonly T[], { first, kvHeads }: Share): T[] {
  return lists.slice(first, first + kvHeads);
}

/** One result of all threads, head after head. */
function joined(parts: Parts, index: number): Float32Array | undefined {
  const first = parts[0][index] as Float32Array | undefined;
  if (!first || parts.length === 1) return first;
  const all = new Float32Array(parts.reduce((sum, part) => sum + part[index]!.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part[index]!, at);
    at += part[index]!.length;
  }
  return all;
}
