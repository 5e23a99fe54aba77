/**
 * While a layer is read, each thread has the heads of the others as guests, so that attention's *queries* can be shared
 * out, and no thread waits because heads don't divide by threads (SmolLM2 has three, Gemma 3 270M one). Only rows that
 * are being read have guests: one layer's at a time, so what they cost is at most that layer once more in each thread.
 *
 * A query's output has the same bits in whichever thread it is computed: a lane of the kernels is a query, and none
 * reads another.
 */
import type { AttentionOutputs, AttentionWants } from "../../core/backend/interface.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { Temporaries } from "../../core/backend/tensor.ts";
import type { WasmBackend } from "../backend.ts";
import type { WasmRows } from "../rows.ts";
import type { Asked } from "./command.ts";
import { countHeads, cutHeads, type HeadRun, otherHeads, type Part, partShape, type TokenRun } from "./heads.ts";
import type { Ask, Sending, ThreadPool } from "./pool.ts";
import { attend, type AttentionGiven, attentionRoom, freeRows, putAttention, ROWS } from "./rows_service.ts";

/** Fewer tokens at once are not worth a copy of their rows. */
export const LEAST_GUESTS = 64;
/** Queries are shared out in so many: what the kernels take together, in every usual group of heads. */
const TOKEN_BLOCK = 16;

/** Keys and values of all heads, by token. */
interface Entries {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  readonly count: number;
}

/** What the rows do for their guests. */
export interface Host {
  readonly shape: AttentionShape;
  readonly backend: WasmBackend;
  readonly pool: ThreadPool;
  /** The heads that each thread owns, from rank 0 on, and the rows they are in: this thread's, the others' id. */
  readonly owned: { readonly parts: readonly Part[]; readonly rows: WasmRows; readonly id: number };
  tell<I>(rank: number, command: Asked<I, unknown>, input: I, sending?: Sending): void;
  later<O>(rank: number, ask: Ask<O>): Promise<O>;
}

/** What a thread has of a layer: some heads in some rows. */
interface Holding {
  readonly rank: number;
  readonly runs: readonly HeadRun[];
  /** This thread's. */
  readonly rows: WasmRows | undefined;
  readonly id: number;
}

export class Guests {
  readonly #host: Host;
  /** The guests of each thread, by rank; some have none. */
  readonly #guests: readonly Holding[];

  /**
   * Room for `reserve` rows of each guest, so that later rows can't fail for want of it.
   * @throws PalisadeError of kind `resources` where there is none.
   */
  constructor(host: Host, reserve: number, type: CacheType) {
    const { shape, backend, pool, owned } = host;
    this.#host = host;
    const id = pool.newId();
    const runs = Array.from({ length: pool.size }, (_, rank) => otherHeads(shape.kvHeads, ownedBy(owned.parts, rank)));
    const [here] = runs;
    const rows = here.length > 0 ? backend.createPart(partShape(shape, ...here), reserve, type, shape) : undefined;
    this.#guests = runs.map((runs, rank) => ({ rank, runs, rows: rank === 0 ? rows : undefined, id }));
    try {
      for (const { rank, runs } of this.#elsewhere()) {
        const { kvHeads, nullLogits } = partShape(shape, ...runs), whole = { reach: undefined, ...shape };
        const made = pool.ask(rank, ROWS.create, { id, kvHeads, reserve, type, whole, nullLogits });
        pool.answerNow(rank, made);
      }
    } catch (error) {
      this.free();
      throw error;
    }
  }

  #elsewhere(): readonly Holding[] {
    return this.#guests.slice(1).filter(({ runs }) => runs.length > 0);
  }

  append({ keys, values, count }: Entries): void {
    const { shape: { kvHeads, headDim }, backend: { tensors } } = this.#host, each = kvHeads * headDim;
    const cut = (runs: readonly HeadRun[], made: Temporaries) => ({
      keys: made.add(cutHeads(keys, each, kvHeads, runs, { tensors })),
      values: made.add(cutHeads(values, each, kvHeads, runs, { tensors })),
    });
    const [here] = this.#guests;
    if (here.rows) {
      using made = new Temporaries(tensors);
      const mine = cut(here.runs, made);
      here.rows.append(mine.keys, mine.values, count);
    }
    for (const { rank, runs, id } of this.#elsewhere()) {
      const made = new Temporaries(tensors);
      this.#host.tell(rank, ROWS.append, { id, ...cut(runs, made), count }, { made });
    }
  }

  /** The same rows stay in every head. */
  compact(kept: Int32Array): void {
    const [here] = this.#guests;
    here.rows?.compact(Array<Int32Array>(countHeads(here.runs)).fill(kept));
    for (const { rank, runs, id } of this.#elsewhere()) {
      const lists = Array.from({ length: countHeads(runs) }, () => kept.slice());
      this.#host.tell(rank, ROWS.compact, { id, kept: lists });
    }
  }

  /**
   * Attention of `count` queries over `length` rows, those of a thread in all heads. No column sums: they would be added
   * in another order.
   */
  async attend(
    queries: Float32Array,
    count: number,
    length: number,
    want: AttentionWants,
    masked: boolean,
  ): Promise<AttentionOutputs<Float32Array>> {
    const { shape, pool, later, backend: { tensors } } = this.#host;
    const { heads, kvHeads, headDim } = shape, each = heads * headDim, { columnMax = false, logSumExp = false } = want;
    const result = attentionRoom(tensors, shape, { count, length }, want);
    const shares = shareQueries(count, length, pool.size, shape.reach, masked);
    const wanted = { columnSum: false, columnMax, logSumExp };
    const work = shares.map((tokens, rank) => {
      const { from, to } = tokens, rowWeights = want.rowWeights?.subarray(from, to) ?? new Float32Array(0);
      const holdings = from < to ? this.#held(rank) : [], made = new Temporaries(tensors);
      const calls = holdings.map(({ id, runs }) => ({
        id,
        queries: made.add(cutHeads(queries, each, kvHeads, runs, { tokens, tensors })),
        count: to - from,
        want: { ...wanted, rowWeights },
        masked,
        behind: count - to,
      }));
      return { rank, tokens, holdings, calls, made };
    });
    const take = (given: AttentionGiven, { runs }: Holding, tokens: TokenRun) => {
      putAttention(given, result, shape, runs, tokens);
      const { columnMax } = given.extras;
      if (columnMax) raise(result.columnMax!, columnMax, heads / kvHeads * length, runs);
    };
    const [mine, ...others] = work;
    const asked = others.filter(({ calls }) => calls.length > 0).map(({ rank, calls, holdings, tokens, made }) => {
      const takeAll = ({ given }: { given: readonly AttentionGiven[] }) =>
        given.forEach((each, i) => take(each, holdings[i], tokens));
      return { rank, ask: pool.askToTake(rank, ROWS.prefill, { calls }, takeAll, { made }) };
    });
    using made = mine.made;
    for (const [i, holding] of mine.holdings.entries()) {
      const given = await attend(holding.rows!, mine.calls[i]);
      made.add(given.output);
      take(given, holding, mine.tokens);
    }
    for (const { rank, ask } of asked) await later(rank, ask);
    return result;
  }

  /** All that a thread has of the layer: its own heads, and its guests. */
  #held(rank: number): Holding[] {
    const { parts, rows, id } = this.#host.owned, part = parts.find((part) => part.rank === rank);
    const own = part ? [{ rank, runs: [part], rows, id }] : [], guests = this.#guests[rank];
    return guests.runs.length > 0 ? [...own, guests] : own;
  }

  free(): void {
    const [{ rows, id }] = this.#guests;
    rows?.free();
    freeRows(this.#host.pool, this.#elsewhere(), id);
  }
}

function ownedBy(parts: readonly Part[], rank: number): HeadRun {
  return parts[rank] ?? { first: 0, kvHeads: 0 };
}

/** Raises `all`, `perHead` numbers of a KV head, to what some heads have given; NaN stays. */
function raise(all: Float32Array, given: Float32Array, perHead: number, runs: readonly HeadRun[]): void {
  let from = 0;
  for (const { first, kvHeads } of runs) {
    for (let i = first * perHead; i < (first + kvHeads) * perHead; i++) all[i] = Math.max(all[i], given[from++]);
  }
}

/**
 * Which of `count` queries, the last of `length` rows, each of `threads` takes, so that all see about as many rows; later
 * queries see more. `reach`: most rows that one sees; unmasked, each sees all.
 */
export function shareQueries(
  count: number,
  length: number,
  threads: number,
  reach: number = Infinity,
  masked = true,
): TokenRun[] {
  const seen = (token: number) => masked ? Math.min(reach, length - count + token + 1) : 1;
  let all = 0;
  for (let token = 0; token < count; token++) all += seen(token);
  const ends: number[] = [];
  let sum = 0;
  for (let token = 0; token < count && ends.length < threads - 1; token++) {
    sum += seen(token);
    if (sum < all * (ends.length + 1) / threads) continue;
    ends.push(Math.min(count, Math.round((token + 1) / TOKEN_BLOCK) * TOKEN_BLOCK));
  }
  while (ends.length < threads) ends.push(count);
  return ends.map((to, rank) => ({ from: rank === 0 ? 0 : ends[rank - 1], to }));
}
