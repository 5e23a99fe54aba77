/** How many threads the kernels run on, and starting them. */
import { option, PalisadeError } from "../core/errors.ts";
import type { Runtime } from "../runtime/interface.ts";
import { mayWait, ThreadPool } from "../wasm/threads/pool.ts";

/** `auto`: {@link autoThreads}, and one where threads can't be started. */
export type ThreadChoice = number | "auto";

/** Most threads one may ask for. */
export const MOST_THREADS = 64;
/** Most threads taken unasked: past them the memory's speed gains little. */
const AUTO_THREADS = 4;

/**
 * Physical cores up to 4; 1 without shared memory, or where this thread may not wait for others (a web page's own).
 * Where the runtime doesn't tell cores from hyperthreads (browsers, systems other than Linux) it counts the latter.
 */
export function autoThreads(runtime: Pick<Runtime, "threads" | "cores">): number {
  if (whyOneThread(runtime)) return 1;
  const { logical, physical } = runtime.cores();
  return Math.max(1, Math.min(AUTO_THREADS, physical ?? logical, logical));
}

/** Why the kernels can't have more than one thread here; nothing when they can. */
export function whyOneThread({ threads }: Pick<Runtime, "threads">): string | undefined {
  if (!threads) return "no shared memory here (a browser gives it to cross-origin isolated pages)";
  return mayWait() ? undefined : "this thread may not wait for others: run palisade in a worker";
}

/**
 * The pool for `threads`, or none for one thread. The caller disposes of it after what runs on it.
 * @throws PalisadeError usage `threads.count` for another number than 1 to 64; resources `threads.unavailable` when a
 * number above 1 can't be had, never silently fewer.
 */
export async function startPool(
  runtime: Pick<Runtime, "threads" | "cores" | "startThread">,
  threads: ThreadChoice,
): Promise<ThreadPool | undefined> {
  const count = threads === "auto" ? autoThreads(runtime) : threads;
  if (!Number.isInteger(count) || count < 1 || count > MOST_THREADS) {
    const message = `Cannot run on ${count} threads: want a whole number from 1 to ${MOST_THREADS}`;
    throw new PalisadeError("usage", "threads.count", message, { where: option("threads") });
  }
  if (count === 1) return undefined;
  const reason = whyOneThread(runtime);
  if (reason) {
    const message = `Cannot run on ${count} threads: ${reason}`;
    throw new PalisadeError("resources", "threads.unavailable", message, { where: option("threads") });
  }
  try {
    return await ThreadPool.start({ threads: count, startThread: runtime.startThread });
  } catch (error) {
    if (threads === "auto") return undefined;
    throw error;
  }
}
