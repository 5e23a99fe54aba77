/**
 * Two forms of one computation with the same results, of which the processor and the engine decide which is faster: each
 * is taken in turns and timed where it is needed anyway, then the faster one stays.
 */

/** The second form is `true`. */
type Form = boolean;

/** Calls of both forms that are not counted: the engine first runs code that it has not optimised. */
const WARM_UP = 24;
/** Calls of each form that are. */
const TRIED = 24;
/** The second form must be ahead by more than noise. */
const AHEAD = 0.97;

/** One kind of computation. */
export class FormTrial {
  readonly #now: () => number;
  /** Milliseconds for a unit of work, of both forms. */
  readonly #times: readonly [number[], number[]] = [[], []];
  #calls = 0;
  #taken: Form | undefined;

  /** `now`: milliseconds. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** The form that was found faster; undefined while both are tried. */
  get taken(): Form | undefined {
    return this.#taken;
  }

  /** Runs `call` in one of the forms; `work`: how much it computes. */
  run<T>(work: number, call: (form: Form) => T): T {
    if (this.#taken !== undefined) return call(this.#taken);
    // Not simply in turns: calls come in circles too, of a layer's matrices.
    const form = (Math.imul(++this.#calls, 0x9e3779b1) >>> 31) === 1, start = this.#now(), result = call(form);
    if (this.#calls > WARM_UP) this.#times[form ? 1 : 0].push((this.#now() - start) / work);
    if (this.#times.every(({ length }) => length >= TRIED)) this.#decide();
    return result;
  }

  #decide(): void {
    const [first, second] = this.#times.map(medianOf);
    this.#taken = second < AHEAD * first;
    this.#times.forEach((times) => times.length = 0);
  }
}

function medianOf(times: readonly number[]): number {
  return times.toSorted((a, b) => a - b)[times.length >> 1];
}
