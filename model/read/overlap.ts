/** Eviction of one layer while the next is read. */
import type { Dense } from "../dense/dense.ts";

/** Tokens up to which a layer is read quickly beside a wait. */
const QUICK = 32768;

/**
 * Whether a layer is evicted from while the next is read: on a device whose answers come late the wait for them would
 * leave it idle. Two layers are whole then for a while, so not where that would be much.
 */
export function isLate({ choices }: Dense, tokens: number): boolean {
  return choices !== undefined && tokens <= QUICK;
}

/** What `now` gives, once what was begun `before` is done too; the first failure of either, when both have ended. */
export async function both<R>(now: Promise<R>, before: Promise<void> | undefined): Promise<R> {
  const [earlier, later] = await Promise.allSettled([before, now]);
  if (earlier.status === "rejected") throw earlier.reason;
  if (later.status === "rejected") throw later.reason;
  return later.value;
}
