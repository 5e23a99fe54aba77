/**
 * How a thread waits for a word of shared memory to change: a while awake, then asleep. Waking a sleeper costs 25 to
 * 40 µs, more than many a step takes, so being awake for as long costs at most twice what the better of both would.
 * Where that keeps being in vain (idle threads, a machine with other work) it is given up, until a wait is short again.
 */

/** Longest and shortest time awake, milliseconds. */
const LONGEST = 0.05, SHORTEST = 0.002;
/** Looks between two looks at the clock, which costs as much as many of them. */
const LOOKS = 64;

/** Tells the processor that this is a loop of waiting, where the engine can. */
const pause: () => void = (Atomics as { pause?: () => void }).pause ?? (() => {});

/** One thread's waits at one word. */
export class Waiter {
  readonly #words: Int32Array;
  readonly #index: number;
  #awake = LONGEST;

  constructor(words: Int32Array, index: number) {
    this.#words = words;
    this.#index = index;
  }

  /** Waits until the word is no longer `value`, at most `ms`. Whether it is not. */
  changed(value: number, ms = Infinity): boolean {
    if (this.#changedAwake(value)) return true;
    Atomics.wait(this.#words, this.#index, value, ms);
    return Atomics.load(this.#words, this.#index) !== value;
  }

  #changedAwake(value: number): boolean {
    const end = performance.now() + this.#awake;
    do {
      for (let i = 0; i < LOOKS; i++) {
        if (Atomics.load(this.#words, this.#index) !== value) {
          this.#awake = LONGEST;
          return true;
        }
        pause();
      }
    } while (performance.now() < end);
    this.#awake = Math.max(SHORTEST, this.#awake / 2);
    return false;
  }
}
