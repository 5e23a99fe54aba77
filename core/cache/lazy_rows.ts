/**
 * One layer's rows in the backend. Some have been evicted, but still lie in a page that others need.
 *
 * Where layers compete, each layer that is read takes a few entries from all before it. Moving up the rest every time
 * would touch the whole cache once per layer; so rows move when a head can give back memory by it, or when somebody
 * wants to see them. What the backend holds is the same either way, page by page.
 */
import { checkKept } from "../backend/checked_rows.ts";
import { type LayerRows, ROW_PAGE } from "../backend/interface.ts";

export class LazyRows {
  readonly #rows: LayerRows;
  /** Per KV head the backend's rows that are in, ascending; `undefined`: all of them. */
  readonly #kept: (Int32Array | undefined)[];

  constructor(rows: LayerRows) {
    this.#rows = rows;
    this.#kept = new Array(rows.shape.kvHeads).fill(undefined);
  }

  get allocatedBytes(): number {
    return this.#rows.allocatedBytes;
  }

  /** The rows, without gaps. */
  settled(): LayerRows {
    if (this.#kept.some((rows) => rows)) this.#move(() => true);
    return this.#rows;
  }

  /**
   * As `LayerRows.compact`, on the rows that are in.
   * @throws RangeError when a list does not fit its head.
   */
  compact(kept: readonly Int32Array[]): void {
    const lengths = this.#kept.map((rows, head) => rows?.length ?? this.#rows.length(head));
    checkKept(kept, lengths);
    // Noted only: the backend's rows stay where they are.
    kept.forEach((rows, head) => {
      if (rows.length < lengths[head]) this.#kept[head] = composed(this.#kept[head], rows);
    });
    // A head moves once its rows fit fewer pages than it holds.
    const frees = (head: number) => {
      const rows = this.#kept[head];
      return rows !== undefined && pages(rows.length) < pages(this.#rows.length(head));
    };
    if (kept.some((_, head) => frees(head))) this.#move(frees);
  }

  free(): void {
    this.#rows.free();
  }

  /** Moves up the rows of the heads asked for. */
  #move(wanted: (head: number) => boolean): void {
    const heads = this.#kept.map((_, head) => wanted(head));
    // One call for the layer; a head that is not asked for keeps all its rows.
    this.#rows.compact(this.#kept.map((rows, head) => heads[head] && rows || firstRows(this.#rows.length(head))));
    heads.forEach((moved, head) => {
      if (moved) this.#kept[head] = undefined;
    });
  }
}

function pages(rows: number): number {
  return Math.ceil(rows / ROW_PAGE);
}

/** The rows of `first` at the places `then`. */
function composed(first: Int32Array | undefined, then: Int32Array): Int32Array {
  const rows = then.slice();
  if (first) { for (let i = 0; i < rows.length; i++) rows[i] = first[rows[i]]; }
  return rows;
}

/** 0, 1, 2, … */
let numbers = new Int32Array(0);

/** The first `count` rows; a view, only to be read. */
function firstRows(count: number): Int32Array {
  if (numbers.length < count) numbers = Int32Array.from({ length: 2 * count }, (_, i) => i);
  return numbers.subarray(0, count);
}
