/** Drawing from a seed: integers, choices, shuffles, and the seed of one sample. */
import { randomSource } from "../../core/measure/random.ts";

export class Draw {
  readonly #next: () => number;

  constructor(seed: number) {
    this.#next = randomSource(seed);
  }

  /** An integer from `low` to `high`, both included. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.#next() * (high - low + 1));
  }

  one<T>(list: readonly T[]): T {
    return list[this.integer(0, list.length - 1)];
  }

  /** A shuffled copy (Fisher–Yates). */
  shuffled<T>(list: readonly T[]): T[] {
    const copy = [...list];
    for (let i = copy.length - 1; i > 0; i--) {
      const j = this.integer(0, i);
      [copy[i], copy[j]] = [copy[j], copy[i]];
    }
    return copy;
  }

  /** `count` different items in random order. */
  sample<T>(list: readonly T[], count: number): T[] {
    return this.shuffled(list).slice(0, count);
  }

  letters(count: number, alphabet: string): string {
    return Array.from({ length: count }, () => alphabet[this.integer(0, alphabet.length - 1)]).join("");
  }
}

/** The seed of one sample: FNV-1a over the words, 53 bits of it. Different samples share nothing. */
export function sampleSeed(seed: number, task: string, length: number, index: number): number {
  const text = `${seed}/${task}/${length}/${index}`;
  return fnv(text, 0x811c9dc5) * 2 ** 21 + (fnv(text, 0x01234567) >>> 11);
}

function fnv(text: string, basis: number): number {
  let hash = basis;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}
