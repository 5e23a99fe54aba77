/** When it is worth waking other threads: the one place that says so. A thread does about 12 billion multiply-adds a second. */

/**
 * Multiply-adds of a call, for each time its threads wait for one another, from which on two threads are faster than one:
 * with both awake (`wait.ts`) a wait and what goes with it costs about 6 µs, and half of the work is saved
 * (`bench/threads.ts`, `bench/results/threads.md`).
 */
export const WORK_PER_WAIT = 1.5e5;

/** Multiply-adds that take as long as moving one float of a row from one thread's memory to another's. */
export const WORK_PER_MOVED_FLOAT = 60;

/** Both, for tests to set otherwise. */
export interface ThreadCost {
  readonly perWait: number;
  readonly perMovedFloat: number;
}

export const THREAD_COST: ThreadCost = { perWait: WORK_PER_WAIT, perMovedFloat: WORK_PER_MOVED_FLOAT };
