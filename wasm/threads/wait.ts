/**
 * How a thread waits for a word of shared memory to change: a while awake, then asleep. Waking a sleeper costs 25 to
 * 40 µs, and its waker as much, more than many a step takes. So a thread stays awake for about as long as its waits take,
 * where they are short: between two steps of a layer others have something to do alone.
 *
 * Where processors are short, whoever is awake keeps the others from what is waited for: then a wait ends soon after it
 * fell asleep, however long it was awake before. After three of those in a row it is awake for no longer than a wake costs,
 * at first for some waits, later for a thousand, until it tries again.
 */

/** Longest time awake, milliseconds; what a wake costs, so worth being awake for; and the shortest. */
const LONGEST = 0.5, WAKE = 0.05, SHORTEST = 0.002;
/** Waits in a row that were awake in vain, and those too long to say anything, before that is believed. */
const VAIN = 3, LONG = 4;
/** Waits until another try: at first, and at most. */
const FIRST_REST = 16, LONGEST_REST = 1024;
/** Looks between two looks at the clock, which costs as much as many of them. */
const LOOKS = 64;

/** Tells the processor that this is a loop of waiting, where the engine can. */
const pause: () => void = (Atomics as { pause?: () => void }).pause ?? (() => {});

/** How long to stay awake, by how the waits so far have ended. Times in milliseconds. */
export class Patience {
  #awake = WAKE;
  #vain = 0;
  #long = 0;
  /** Waits until being awake for longer is tried again, and how many it will be the next time. */
  #rest = 0;
  #nextRest = FIRST_REST;

  get awake(): number {
    return this.#awake;
  }

  /** A wait ended awake after `ms`. */
  heard(ms: number): void {
    if (ms > WAKE) this.#vain = 0;
    this.#awake = Math.max(this.#awake, WAKE);
  }

  /** A wait ended asleep after `ms` in all. */
  slept(ms: number): void {
    this.#long = ms < LONGEST ? 0 : this.#long + 1;
    if (this.#rest > 0 || this.#long >= LONG) {
      this.#rest = Math.max(0, this.#rest - 1);
      this.#awake = Math.max(SHORTEST, this.#awake / 2);
    } else if (this.#long === 0 && ++this.#vain <= VAIN) this.#awake = Math.min(LONGEST, 2 * ms);
    else if (this.#long === 0) {
      [this.#vain, this.#awake, this.#rest] = [0, WAKE, this.#nextRest];
      this.#nextRest = Math.min(LONGEST_REST, 2 * this.#nextRest);
    }
  }
}

/** One thread's waits at one word. */
export class Waiter {
  readonly #words: Int32Array;
  readonly #index: number;
  readonly #patience = new Patience();

  constructor(words: Int32Array, index: number) {
    this.#words = words;
    this.#index = index;
  }

  /** Waits until the word is no longer `value`, at most `ms`. Whether it is not. */
  changed(value: number, ms = Infinity): boolean {
    if (Atomics.load(this.#words, this.#index) !== value) return true;
    const start = performance.now(), awake = this.#changedAwake(value, start + this.#patience.awake);
    if (!awake) Atomics.wait(this.#words, this.#index, value, ms);
    const waited = performance.now() - start;
    if (awake) this.#patience.heard(waited);
    else this.#patience.slept(waited);
    return awake || Atomics.load(this.#words, this.#index) !== value;
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
