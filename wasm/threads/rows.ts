/**
 * Keys and values of one layer, its KV heads shared out over the threads of a pool. Where attention has too little to do
 * for that, all heads move to this thread, and out again when it has more.
 */
import { concatenate } from "../../core/concatenate.ts";
import type {
  AttentionOutputs,
  AttentionWants,
  CopiedRows,
  DecodeOutputs,
  Foresight,
  RefittedRows,
  ThinKeys,
  TrustingRows,
} from "../../core/backend/interface.ts";
import { afterwards, type ReducedHead } from "../../core/backend/reduced.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import type { PackedHead } from "../../core/cache/packed.ts";
import type { Needs, NormKind, Observation } from "../../core/policy/policy.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";
import type { AttentionShape } from "../../core/shape.ts";
import type { Ask, Sending, ThreadPool } from "./pool.ts";
import { Temporaries } from "../../core/backend/tensor.ts";
import { PalisadeError } from "../../core/errors.ts";
import { Guests, type Host, LEAST_GUESTS } from "./guests.ts";
import { cutHeads, type HeadRun, ofHeads, type Part, partShape, putHeads, shareHeads } from "./heads.ts";
import { attend, type AttentionGiven, attentionRoom, freeRows, putAttention, ROWS } from "./rows_service.ts";
import type { WasmBackend } from "../backend.ts";
import type { Asked } from "./command.ts";
import type { WasmRows } from "../rows.ts";
import type { ThreadCost } from "./cost.ts";

/** Where rows may be, and what it costs that they are elsewhere. */
export interface Place {
  readonly backend: WasmBackend;
  readonly pool: ThreadPool;
  readonly cost: ThreadCost;
  /** The rows that have guests: one layer is read at a time. */
  hosting?: ThreadedRows;
}

/** See `LayerRows` for the meaning of each method, `CheckedRows` for what they may trust. */
export class ThreadedRows implements TrustingRows<Float32Array> {
  readonly #shape: AttentionShape;
  readonly #place: Place;
  readonly #pool: ThreadPool;
  readonly #id: number;
  /** Parts of all threads when the heads are shared out, this thread's first. */
  readonly #parts: readonly Part[];
  /** Rows of each KV head. */
  readonly #lengths: Int32Array;
  /** What each KV head has lost of its keys, or reads by: to say it again where its rows move to. */
  readonly #reduced: ReducedHead[];
  #own: WasmRows;
  /** The other threads' parts; none while all heads are here. */
  #others: readonly Part[];
  /** Multiply-adds that calls since the last move could have saved with the rows elsewhere. */
  #lost = 0;
  /** Whether there was no room for a move. */
  #stays = false;
  #broken?: Error;
  readonly #reserve: number;
  #guests?: Guests;

  private constructor(
    place: Place,
    own: WasmRows,
    shape: AttentionShape,
    lengths: Int32Array,
    { id = place.pool.newId(), reserve = 0 } = {},
  ) {
    this.#reserve = reserve;
    this.#shape = shape;
    this.#place = place;
    this.#pool = place.pool;
    this.#id = id;
    this.#own = own;
    this.#parts = shareHeads(shape.kvHeads, place.pool.size);
    this.#others = own.shape.kvHeads === shape.kvHeads ? [] : this.#parts.slice(1);
    this.#lengths = lengths;
    this.#reduced = Array.from(lengths, () => ({}));
  }

  static create(place: Place, shape: AttentionShape, reserve: number, type: CacheType): ThreadedRows {
    const { backend, pool } = place;
    const mine = partShape(shape, shareHeads(shape.kvHeads, pool.size)[0]);
    const own = backend.createPart(mine, reserve, type, shape);
    const rows = new ThreadedRows(place, own, shape, new Int32Array(shape.kvHeads), { reserve });
    for (const part of rows.#others) rows.#tell(part, ROWS.create, rows.#creation(part, reserve));
    return rows;
  }

  /** What {@link ROWS.create} takes. */
  #creation(part: Part, reserve: number) {
    const { kvHeads, reach, nullLogits } = partShape(this.#shape, part);
    return { id: this.#id, kvHeads, reserve, type: this.#own.type, whole: { reach, ...this.#shape }, nullLogits };
  }

  get allocatedBytes(): number {
    this.#alive();
    const asks = this.#askAll(ROWS.bytes, () => ({ id: this.#id }));
    return this.#others.reduce(
      (sum, { rank }, i) => sum + this.#now(rank, asks[i]).allocated,
      this.#own.allocatedBytes,
    );
  }

  append(keys: Float32Array, values: Float32Array, count: number): void {
    this.#alive();
    const { kvHeads, headDim } = this.#shape, each = kvHeads * headDim;
    const length = this.#lengths[0];
    if (this.#guests && length + count > this.#reserve) this.#sendAway();
    if (length === 0) this.#invite(count);
    {
      using made = this.#temporaries();
      this.#own.append(this.#mine(keys, each, made), this.#mine(values, each, made), count);
    }
    for (const part of this.#others) {
      const made = this.#temporaries();
      const piece = { keys: this.#cut(keys, each, part, made), values: this.#cut(values, each, part, made) };
      this.#tell(part, ROWS.append, { id: this.#id, ...piece, count }, { made });
    }
    this.#guests?.append({ keys, values, count });
    this.#lengths.forEach((length, h) => this.#lengths[h] = length + count);
  }

  /** Has guests from now on, where the first rows of many come and heads don't divide by threads. */
  #invite(count: number): void {
    const { size } = this.#pool, { kvHeads } = this.#shape;
    if (kvHeads % size === 0 || count < LEAST_GUESTS || count > this.#reserve) return;
    if (this.#mineHeads > this.#parts[0].kvHeads) return;
    const { hosting } = this.#place;
    if (hosting) hosting.#sendAway();
    try {
      this.#guests = new Guests(this.#host(), this.#reserve, this.#own.type);
      this.#place.hosting = this;
    } catch (error) {
      if (!(error instanceof PalisadeError && error.kind === "resources")) throw error;
    }
  }

  #host(): Host {
    return {
      shape: this.#shape,
      backend: this.#place.backend,
      pool: this.#pool,
      owned: { parts: this.#parts, rows: this.#own, id: this.#id },
      tell: (rank, command, input, sending) => this.#tell({ rank }, command, input, sending),
      later: (rank, ask) => this.#later(rank, ask),
    };
  }

  /** Reading has ended. */
  #sendAway(): void {
    if (!this.#guests) return;
    this.#guests.free();
    this.#guests = undefined;
    this.#place.hosting = undefined;
  }

  prefillAttention(
    queries: Float32Array,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs<Float32Array>> {
    return this.#attend(queries, count, want, true);
  }

  unmaskedAttention(
    queries: Float32Array,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs<Float32Array>> {
    return this.#attend(queries, count, want, false);
  }

  async #attend(
    queries: Float32Array,
    count: number,
    want: AttentionWants,
    masked: boolean,
  ): Promise<AttentionOutputs<Float32Array>> {
    this.#alive();
    const { heads, headDim } = this.#shape, each = heads * headDim;
    const { columnSum = false, columnMax = false, logSumExp = false, rowWeights } = want;
    if (!this.#guests) this.#settle(count);
    else if (!columnSum && count >= LEAST_GUESTS) {
      return this.#guests.attend(queries, count, this.#lengths[0], want, masked);
    }
    const wanted = { columnSum, columnMax, logSumExp, rowWeights: rowWeights ?? new Float32Array(0) };
    const call = (queries: Float32Array) => ({ queries, count, want: wanted, masked, behind: 0 });
    if (this.#others.length === 0) {
      const { output, extras } = await attend(this.#own, call(queries));
      return { output, ...extras };
    }
    const length = this.#lengths[0], columns = heads / this.#shape.kvHeads * length;
    const result = attentionRoom(this.#place.backend.tensors, this.#shape, { count, length }, want);
    const take = (given: AttentionGiven, part: HeadRun) => {
      putAttention(given, result, this.#shape, [part]);
      for (const name of ["columnSum", "columnMax"] as const) {
        const numbers = given.extras[name];
        if (numbers) result[name]!.set(numbers, part.first * columns);
      }
    };
    const asked = this.#others.map((part) => {
      const { rank } = part, made = this.#temporaries(), pieces = this.#cut(queries, each, part, made);
      const calls = [{ id: this.#id, ...call(pieces) }];
      const takeFirst = ({ given }: { given: readonly AttentionGiven[] }) => take(given[0], part);
      return { rank, ask: this.#pool.askToTake(rank, ROWS.prefill, { calls }, takeFirst, { made }) };
    });
    using made = this.#temporaries();
    const given = await attend(this.#own, call(this.#mine(queries, each, made)));
    made.add(given.output);
    take(given, this.#here);
    for (const { rank, ask } of asked) await this.#later(rank, ask);
    return result;
  }

  async decodeAttention(
    queries: Float32Array,
    count: number,
    want: { probabilities?: boolean } = {},
  ): Promise<DecodeOutputs<Float32Array>> {
    this.#alive();
    this.#sendAway();
    this.#settle(count);
    if (this.#others.length === 0) return this.#own.decodeAttention(queries, count, want);
    const { heads, headDim } = this.#shape, each = heads * headDim;
    const wanted = want.probabilities === true;
    const given = await this.#all(
      ROWS.decode,
      (part) => ({ id: this.#id, queries: this.#cut(queries, each, part), count, probabilities: wanted }),
      async () => {
        const { output, probabilities = [] } = await this.#own
          .decodeAttention(this.#mine(queries, each), count, want);
        return { output, probabilities };
      },
    );
    const output = this.#interleaved(given.map(({ output }) => output), each);
    return wanted ? { output, probabilities: given.flatMap(({ probabilities }) => probabilities) } : { output };
  }

  async observe(queries: Float32Array, window: number, needs: Needs): Promise<Partial<Observation>> {
    this.#alive();
    const { heads, headDim } = this.#shape, each = heads * headDim;
    const { window: reductions = [], kernel, rows } = needs, asked = reductions.length > 0;
    const piece = (part: Part) => asked ? this.#cut(queries, each, part) : new Float32Array(0);
    const given = await this.#all(
      ROWS.observe,
      (part) => ({ id: this.#id, queries: piece(part), window, needs: { window: reductions, kernel, rows } }),
      async () => ({ seen: await this.#own.observe(asked ? this.#mine(queries, each) : queries, window, needs) }),
    );
    const names = [...reductions, ...rows ? ["keys", "values"] as const : []];
    return Object.fromEntries(names.map((name) => [name, joined(given.map(({ seen }) => seen[name]!))]));
  }

  async valueNorms(wo: Float32Array, width: number, kind: NormKind = "l1"): Promise<Float32Array> {
    this.#alive();
    const each = this.#shape.heads * this.#shape.headDim;
    using made = this.#temporaries();
    const given = await this.#all(
      ROWS.norms,
      (part) => ({ id: this.#id, wo: this.#cut(wo, each, part, made), width, kind }),
      async () => ({ norms: await this.#own.valueNorms(this.#mine(wo, each, made), width, kind) }),
    );
    return joined(given.map(({ norms }) => norms));
  }

  refit(kvHead: number, { values, bias }: RefittedRows): void {
    this.#alive();
    this.#sendAway();
    if (kvHead < this.#mineHeads) return this.#own.refit(kvHead, { values, bias });
    const part = this.#others.find(({ first, kvHeads }) => kvHead < first + kvHeads)!;
    this.#tell(part, ROWS.refit, { id: this.#id, kvHead: kvHead - part.first, values, bias });
  }

  thin(kvHead: number, keys: ThinKeys): void {
    this.#alive();
    this.#sendAway();
    const thin = { channels: keys.channels.slice(), rows: this.#lengths[kvHead] - keys.recent };
    this.#reduced[kvHead] = { thin };
    const at = this.#placeOf(kvHead);
    if (!at) return this.#own.thin(kvHead, keys);
    this.#tell(at.part, ROWS.thin, { id: this.#id, kvHead: at.kvHead, ...keys });
  }

  foresee(kvHead: number, foresight: Foresight): void {
    this.#alive();
    this.#sendAway();
    this.#reduced[kvHead] = { foresight: { ...foresight, channels: foresight.channels.slice() } };
    const at = this.#placeOf(kvHead);
    if (!at) return this.#own.foresee(kvHead, foresight);
    this.#tell(at.part, ROWS.foresee, { id: this.#id, kvHead: at.kvHead, ...foresight });
  }

  /** The other thread's part that a head is in, and which of its heads it is. */
  #placeOf(kvHead: number): { part: Part; kvHead: number } | undefined {
    if (kvHead < this.#mineHeads) return undefined;
    const part = this.#others.find(({ first, kvHeads }) => kvHead < first + kvHeads)!;
    return { part, kvHead: kvHead - part.first };
  }

  /** Tells all heads, whose rows came whole, what they are to lose and to read by. */
  #reduceAgain(reduced: readonly ReducedHead[]): void {
    reduced.forEach(({ thin, foresight }, h) => {
      if (thin) this.thin(h, { channels: thin.channels, recent: this.#lengths[h] - thin.rows });
      if (foresight) this.foresee(h, foresight);
    });
  }

  pack(given?: readonly (PackedHead | undefined)[]): void {
    this.#alive();
    this.#sendAway();
    this.#own.pack(given?.slice(0, this.#mineHeads));
    for (const part of this.#others) {
      if (given) this.#tell(part, ROWS.takePacked, { id: this.#id, heads: ofHeads(given, part) });
      else this.#tell(part, ROWS.pack, { id: this.#id });
    }
  }

  compact(kept: readonly Int32Array[]): void {
    this.#alive();
    // A window layer lets go of the same rows in every head while it is read.
    if (this.#guests && kept.every((rows) => rows === kept[0])) this.#guests.compact(kept[0]);
    else this.#sendAway();
    this.#own.compact(kept.slice(0, this.#mineHeads));
    for (const part of this.#others) {
      this.#tell(part, ROWS.compact, { id: this.#id, kept: ofHeads(kept, part).map((rows) => rows.slice()) });
    }
    kept.forEach((rows, h) => {
      this.#lengths[h] = rows.length;
      this.#reduced[h] = afterwards(this.#reduced[h], rows);
    });
  }

  truncate(lengths: ArrayLike<number>): void {
    this.#alive();
    this.#sendAway();
    const wanted = Array.from(lengths);
    this.#own.truncate(wanted.slice(0, this.#mineHeads));
    for (const part of this.#others) {
      this.#tell(part, ROWS.truncate, { id: this.#id, lengths: ofHeads(wanted, part) });
    }
    this.#lengths.set(wanted);
    wanted.forEach((length, h) => this.#reduced[h] = afterwards(this.#reduced[h], length));
  }

  async rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    this.#alive();
    this.#sendAway();
    const turns = { ...rotation, frequencies: Array.from(rotation.frequencies) };
    try {
      await this.#all(
        ROWS.rotate,
        (part) => ({
          id: this.#id,
          moves: ofHeads(moves, part).map((list) => list.slice()),
          rotation: turns,
        }),
        async () => {
          await this.#own.rotateKeys(moves.slice(0, this.#mineHeads), rotation);
          return {};
        },
      );
    } catch (error) {
      // Half turned.
      this.#broken ??= error as Error;
      throw error;
    }
  }

  async clone(): Promise<TrustingRows<Float32Array>> {
    this.#alive();
    const lengths = this.#lengths.slice(), others = this.#others, id = this.#pool.newId();
    const reduced = [...this.#reduced];
    let own: WasmRows | undefined;
    try {
      await this.#all(ROWS.clone, () => ({ id: this.#id, copy: id }), async () => {
        own = await this.#own.clone();
        return {};
      });
      const copy = new ThreadedRows(this.#place, own!, this.#shape, lengths, { id });
      reduced.forEach((head, h) => copy.#reduced[h] = head);
      return copy;
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
    return (await this.#later(rank, ask)).rows;
  }

  /** All heads as `copyRows` gives them, without the event loop, so that no other call comes between. */
  #copyAllNow(): CopiedRows[] {
    return Array.from(this.#lengths, (_, kvHead) => {
      if (kvHead < this.#mineHeads) return this.#own.copyNow(kvHead);
      const { rank, ask } = this.#askForCopy(kvHead);
      return this.#now(rank, ask).rows;
    });
  }

  /** Asks the thread that has the head. */
  #askForCopy(kvHead: number, wanted?: Int32Array) {
    const { rank, first } = this.#others.find((part) => kvHead < part.first + part.kvHeads)!;
    return { rank, ask: this.#pool.ask(rank, ROWS.copy, { id: this.#id, kvHead: kvHead - first, wanted }) };
  }

  free(): void {
    this.#sendAway();
    this.#own.free();
    this.#freeAt(this.#others);
  }

  #freeAt(parts: readonly Part[], id = this.#id): void {
    freeRows(this.#pool, parts, id);
  }

  /**
   * Before a call with `queries`: moves the rows once the calls so far have lost by their place what moving costs. So no
   * sequence of calls takes more than about twice the time it would take with the best moves.
   */
  #settle(queries: number): void {
    if (this.#parts.length === 1 || this.#stays) return;
    const { heads, kvHeads, headDim } = this.#shape, { perWait, perMovedFloat } = this.#place.cost;
    const floats = 2 * headDim * this.#lengths.reduce((sum, rows) => sum + rows, 0);
    const work = queries * floats * heads / kvHeads;
    const savedByThreads = work * (1 - this.#parts[0].kvHeads / kvHeads) - perWait / 2;
    this.#lost = Math.max(0, this.#lost + (this.#others.length === 0 ? savedByThreads : -savedByThreads));
    if (this.#lost <= perMovedFloat * floats) return;
    this.#lost = 0;
    this.#move();
  }

  /** All rows to this thread, or to their owners. Where there is no room they stay for good. */
  #move(): void {
    const to = this.#others.length > 0 ? [{ rank: 0, first: 0, kvHeads: this.#shape.kvHeads }] : this.#parts;
    const [here, ...others] = to, before = { own: this.#own, others: this.#others };
    const mine = partShape(this.#shape, here);
    let own: WasmRows | undefined;
    try {
      const rows = this.#copyAllNow();
      own = this.#place.backend.createPart(mine, Math.min(...this.#lengths), this.#own.type, this.#shape);
      own.fill(ofHeads(rows, here));
      for (const part of others) this.#giveTo(part, ofHeads(rows, part));
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
    this.#reduceAgain([...this.#reduced]);
  }

  #giveTo(part: Part, heads: readonly CopiedRows[]): void {
    const { rank } = part, id = this.#id;
    const made = this.#pool.ask(rank, ROWS.create, this.#creation(part, 0));
    const filled = this.#pool.ask(rank, ROWS.fill, { id, heads });
    this.#now(rank, made);
    this.#now(rank, filled);
  }

  get #here(): HeadRun {
    return { first: 0, kvHeads: this.#mineHeads };
  }

  get #mineHeads(): number {
    return this.#own.shape.kvHeads;
  }

  #tell<I>({ rank }: Pick<Part, "rank">, command: Asked<I, unknown>, input: I, sending?: Sending): void {
    this.#pool.tell(rank, command, input, { ...sending, onFailure: (error) => this.#broken ??= error });
  }

  #askAll<I, O>(command: Asked<I, O>, input: (part: Part) => I): Ask<O>[] {
    return this.#others.map((part) => this.#pool.ask(part.rank, command, input(part)));
  }

  #now<O>(rank: number, ask: Ask<O>): O {
    try {
      const given = this.#pool.answerNow(rank, ask);
      if (!this.#broken) return given;
    } catch (error) {
      throw this.#broken ?? error;
    }
    throw this.#broken;
  }

  async #later<O>(rank: number, ask: Ask<O>): Promise<O> {
    try {
      const given = await this.#pool.answer(rank, ask);
      if (!this.#broken) return given;
    } catch (error) {
      throw this.#broken ?? error;
    }
    throw this.#broken;
  }

  /**
   * Has the others at work, does this thread's part meanwhile, and waits for the others. What each gave, in the order of
   * their heads, this thread's first.
   */
  async #all<I, O>(command: Asked<I, O>, input: (part: Part) => I, own: () => Promise<O>): Promise<O[]> {
    const others = this.#others, asks = this.#askAll(command, input);
    const given = [await own()];
    for (const [i, { rank }] of others.entries()) given.push(await this.#later(rank, asks[i]));
    return given;
  }

  #temporaries(): Temporaries {
    return new Temporaries(this.#place.backend.tensors);
  }

  /** This thread's heads of `[count, heads …]`, `each` floats a row; freed with `made`, where one is given. */
  #mine(all: Float32Array, each: number, made?: Temporaries): Float32Array {
    return this.#others.length === 0 ? all : this.#cut(all, each, this.#here, made);
  }

  #cut(all: Float32Array, each: number, part: HeadRun, made?: Temporaries): Float32Array {
    const { kvHeads } = this.#shape;
    if (!made) return cutHeads(all, each, kvHeads, [part]);
    return made.add(cutHeads(all, each, kvHeads, [part], { tensors: this.#place.backend.tensors }));
  }

  /** `[count, heads of a thread …]` of each → `[count, heads …]`, `each` numbers a row. */
  #interleaved(given: readonly Float32Array[], each: number): Float32Array {
    const [first] = given, { kvHeads } = this.#shape;
    if (given.length === 1) return first;
    const all = new Float32Array(first.length / this.#mineHeads * kvHeads);
    given.forEach((piece, i) => putHeads(piece, all, each, kvHeads, [i === 0 ? this.#here : this.#others[i - 1]]));
    return all;
  }

  #alive(): void {
    if (this.#broken) throw this.#broken;
  }
}

/** One result of all threads, head after head. */
function joined(given: readonly Float32Array[]): Float32Array {
  return given.length === 1 ? given[0] : concatenate(given, Float32Array);
}
