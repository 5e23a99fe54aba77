/** Byte-pair merging of one word, whatever says which neighbours join. */

/**
 * Score of the neighbours `word[from … middle)` and `word[middle … to)`: the higher joins first, the one further left among
 * equals; undefined where they don't join.
 */
export type JoinScore = (word: string, from: number, middle: number, to: number) => number | undefined;

/** One word being joined: a list of symbols linked both ways, and a heap of neighbours that would make a piece. */
export class Joining {
  readonly #word: string;
  readonly #scoreOf: JoinScore;
  /** Begin and end of each symbol in the word; a symbol that was taken in ends where it begins. */
  readonly #from: Int32Array;
  readonly #to: Int32Array;
  readonly #previous: Int32Array;
  readonly #next: Int32Array;
  readonly #heap: Join[] = [];
  /** What each joined text was made of. */
  readonly #made = new Map<string, readonly [string, string]>();

  constructor(word: string, scoreOf: JoinScore) {
    this.#word = word;
    this.#scoreOf = scoreOf;
    const starts: number[] = [];
    for (let i = 0; i < word.length; i += word.codePointAt(i)! > 0xffff ? 2 : 1) starts.push(i);
    const count = starts.length;
    this.#from = Int32Array.from(starts);
    this.#to = Int32Array.from(starts, (_, i) => starts[i + 1] ?? word.length);
    this.#previous = Int32Array.from(starts, (_, i) => i - 1);
    this.#next = Int32Array.from(starts, (_, i) => i + 1 < count ? i + 1 : -1);
  }

  run(emit: (text: string, made: ReadonlyMap<string, readonly [string, string]>) => void): void {
    for (let i = 0; i + 1 < this.#from.length; i++) this.#offer(i, i + 1);
    for (let join = pop(this.#heap); join !== undefined; join = pop(this.#heap)) this.#take(join);
    for (let i = 0; i !== -1; i = this.#next[i]) emit(this.#text(i), this.#made);
  }

  #text(symbol: number): string {
    return this.#word.slice(this.#from[symbol], this.#to[symbol]);
  }

  #offer(left: number, right: number): void {
    if (left < 0 || right < 0) return;
    const from = this.#from[left], to = this.#to[right];
    const score = this.#scoreOf(this.#word, from, this.#from[right], to);
    if (score !== undefined) push(this.#heap, { left, right, size: to - from, score });
  }

  #take({ left, right, size }: Join): void {
    // Either side has changed since: it was taken in, or has grown.
    if (this.#next[left] !== right || this.#to[left] === this.#from[left]) return;
    if (this.#to[right] - this.#from[left] !== size) return;
    const parts = [this.#text(left), this.#text(right)] as const;
    this.#to[left] = this.#to[right];
    this.#from[right] = this.#to[right];
    this.#next[left] = this.#next[right];
    if (this.#next[right] !== -1) this.#previous[this.#next[right]] = left;
    this.#made.set(this.#text(left), parts);
    this.#offer(this.#previous[left], left);
    this.#offer(left, this.#next[left]);
  }
}

/** Two neighbours that would make a piece. */
interface Join {
  readonly left: number;
  readonly right: number;
  /** UTF-16 units of both when they were offered. */
  readonly size: number;
  readonly score: number;
}

/** The higher score, then the one further left. */
function isBefore(a: Join, b: Join): boolean {
  return a.score > b.score || (a.score === b.score && a.left < b.left);
}

function push(heap: Join[], join: Join): void {
  let at = heap.push(join) - 1;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (!isBefore(join, heap[parent])) break;
    heap[at] = heap[parent];
    at = parent;
  }
  heap[at] = join;
}

function pop(heap: Join[]): Join | undefined {
  const first = heap[0], last = heap.pop();
  if (last === undefined || heap.length === 0) return first;
  let at = 0;
  for (let child = 1; child < heap.length; child = 2 * at + 1) {
    if (child + 1 < heap.length && isBefore(heap[child + 1], heap[child])) child++;
    if (!isBefore(heap[child], last)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = last;
  return first;
}
