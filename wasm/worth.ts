/** When it is worth waking other threads: the one place that says so. */

/**
 * Multiply-adds of a call, for each time its threads wait for one another, from which on sharing it out is faster than
 * computing it on one thread. A wake-up costs about 25 to 60 µs, and a thread does about 12 billion multiply-adds a second
 * (`bench/threads.ts`, `bench/results/threads.md`).
 */
export const WORK_PER_WAIT = 2e6;
