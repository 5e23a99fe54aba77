/**
 * Tells when an answer goes round in a circle: a small model that has lost its way says one phrase until something stops
 * it.
 *
 * A loop is an exact repetition of a cycle of tokens at the end of the answer. Tables, rules of dashes, numbers and
 * dumps repeat without words, so a cycle of words counts as a loop much earlier than one without.
 */

/** Longest cycle, tokens. */
const LONGEST = 32;
/** What makes a loop: so many repetitions, and so many tokens in all. */
const OF_WORDS = { repeats: 4, tokens: 32 };
const OF_OTHERS = { repeats: 8, tokens: 160 };

/** Watches one answer, token by token. */
export class LoopWatch {
  readonly #textOf: (ids: readonly number[]) => string;
  readonly #ids: number[] = [];
  /** For each period: how many tokens in a row, up to the last, equal the one a period before. */
  readonly #runs = new Uint32Array(LONGEST + 1);

  /** `textOf` decodes a cycle. */
  constructor(textOf: (ids: readonly number[]) => string) {
    this.#textOf = textOf;
  }

  /** Takes the next token; true when the answer is in a loop now. */
  push(id: number): boolean {
    const ids = this.#ids, at = ids.push(id) - 1;
    for (let period = 1; period <= Math.min(LONGEST, at); period++) {
      this.#runs[period] = ids[at - period] === id ? this.#runs[period] + 1 : 0;
    }
    return this.#runs.some((run, period) => run > 0 && this.#isLoop(period, run + period));
  }

  #isLoop(period: number, tokens: number): boolean {
    const reaches = (least: typeof OF_WORDS) => tokens >= least.tokens && tokens >= least.repeats * period;
    return reaches(OF_OTHERS) || (reaches(OF_WORDS) && isWords(this.#textOf(this.#ids.slice(-period))));
  }
}

/** More letters than digits and other marks that carry meaning of their own; "0x00, " is none, "A: " is. */
function isWords(cycle: string): boolean {
  const count = (pattern: RegExp) => cycle.match(pattern)?.length ?? 0;
  return count(/\p{L}/gu) > count(/\p{N}/gu);
}
