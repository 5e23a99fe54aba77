/** Eviction of layers while later ones are read. */
import type { Dense } from "../dense/dense.ts";

/**
 * Layers that may be whole beside the one that is read. On a device whose answers come late the wait for each would leave
 * it idle; so they are evicted from when the answers come. None where that would be much, or where answers come at once.
 */
export function waitingLayers({ waitingRows = 0 }: Pick<Dense, "waitingRows">, tokens: number): number {
  return Math.floor(waitingRows / tokens);
}

/** Evictions in order of the layers, at most so many of them under way beside what is done meanwhile. */
export class Evictions {
  readonly #most: number;
  readonly #pending: Promise<void>[] = [];

  /** `most`: 0 waits for each at once. */
  constructor(most: number) {
    this.#most = most;
  }

  /** Begins one; `work` is told of the one before, which it has to wait for before it changes anything. */
  async add(work: (before: Promise<void> | undefined) => Promise<void>): Promise<void> {
    const begun = work(this.#pending.at(-1));
    // It is looked at later; until then nobody does.
    begun.catch(() => {});
    this.#pending.push(begun);
    if (this.#most === 0) await this.end();
  }

  /** What `now` gives, once few enough are left; a failure of either, the earlier's first, when all have ended. */
  async beside<R>(now: Promise<R>): Promise<R> {
    const due = this.#pending.splice(0, Math.max(0, this.#pending.length - this.#most + 1));
    try {
      return await together(now, ...due);
    } catch (error) {
      await Promise.allSettled(this.#pending.splice(0));
      throw error;
    }
  }

  /** Waits for all. @throws the first failure, when all have ended. */
  async end(): Promise<void> {
    await together(undefined, ...this.#pending.splice(0));
  }
}

/** What `now` gives, once all others are done too; the first failure, the others' before its own, when all have ended. */
export async function together<R>(now: R | Promise<R>, ...others: readonly unknown[]): Promise<R> {
  const [later, ...before] = await Promise.allSettled([now, ...others]);
  for (const each of before) if (each.status === "rejected") throw each.reason;
  if (later.status === "rejected") throw later.reason;
  return later.value;
}
