/**
 * How a thread waits for a word of shared memory to change: a while awake, then asleep. Waking a sleeper costs 25 to
 * 40 µs, and its waker as much, more than many a step takes. So a thread stays awake for about as long as its waits take,
 * where they are short: between two steps of a layer others have something to do alone. Where being awake keeps being in
 * vain (idle threads, a machine with other work) it is given up, until a wait is short again.
 */

/** Longest time awake, milliseconds; what a wake costs, so worth being awake for in any case; and the shortest. */
const LONGEST = 0.5, WAKE = 0.05, SHORTEST = 0.002;
/** Looks between two looks at the clock, which costs as much as many of them. */
const LOOKS = 64;

/** Tells the processor that this is a loop of waiting, where the engine can. */
const pause: () => void = (Atomics as { pause?: () => void }).pause ?? (() => {});

/** One thread's waits at one word. */
export class Waiter {
  readonly #words: Int32Array;
  readonly #index: number;
  #awake = WAKE;

  constructor(words: Int32Array, index: number) {
    this.#words = words;
    this.#index = index;
  }

  /** Waits until the word is no longer `value`, at most `ms`. Whether it is not. */
  changed(value: number, ms = Infinity): boolean {
    const start = performance.now();
    if (this.#changedAwake(value, start + this.#awake)) {
      this.#awake = Math.max(this.#awake, WAKE);
      return true;
    }
    Atomics.wait(this.#words, this.#index, value, ms);
    const waited = performance.now() - start;
    this.#awake = waited < LONGEST ? Math.min(LONGEST, 2 * waited) : Math.max(SHORTEST, this.#awake / 2);
    return Atomics.load(this.#words, this.#index) !== value;
  }

  #changedAwake(value: number, end: number): boolean {
    do {
      for (let i = 0; i < LOOKS; i++) {
        if (Atomics.load(this.#words, this.#index) !== value) return true;
        pause();
      }
    } while (performance.now() < end);
    return false;
  }
}
