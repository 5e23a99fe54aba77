/** Long work whose result many ask for: done once, for all of them. */

/** Asks for the result; who aborts its signal waits no longer. */
export type Ask<T, O extends Abortable> = (options?: O) => Promise<T>;

interface Abortable {
  readonly signal?: AbortSignal;
}

/**
 * Does `work` at the first call, with that call's options; later calls get the same result, or error. When the signal of
 * the one that began it aborts, those who still wait begin anew.
 */
export function sharedWork<T, O extends Abortable>(work: (options: O) => Promise<T>): Ask<T, O> {
  let begun: { readonly result: Promise<T>; readonly by?: AbortSignal } | undefined;
  return async (options = {} as O) => {
    const { signal } = options;
    for (;;) {
      signal?.throwIfAborted();
      const current = begun ??= { result: work(options), by: signal };
      try {
        return await unlessAborted(current.result, signal);
      } catch (error) {
        if (!current.by?.aborted) throw error;
        if (begun === current) begun = undefined;
      }
    }
  };
}

/** The promise, or the signal's reason as soon as it aborts. */
export async function unlessAborted<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return await promise;
  let stop = () => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
