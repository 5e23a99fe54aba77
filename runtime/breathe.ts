/**
 * Turns of the event loop in between long work. Awaiting something that is done already only runs microtasks: no timer
 * fires and no Ctrl-C is heard meanwhile. Same code in every runtime.
 */

/** Longest time between two turns when work breathes often enough, milliseconds. */
const EVERY_MS = 50;

let last = performance.now();

/**
 * Calls back after a turn of the event loop: `setImmediate` where there is one, which takes microseconds; a timer takes a
 * millisecond or two, one in twenty of these.
 */
const turn: (done: () => void) => void = (globalThis as { setImmediate?: (done: () => void) => void }).setImmediate ??
  ((done) => setTimeout(done, 0));

/**
 * Lets the event loop turn when it has not for a while; otherwise costs next to nothing.
 * @throws `signal.reason` when `signal` is aborted.
 */
export async function breathe(signal?: AbortSignal): Promise<void> {
  if (performance.now() - last >= EVERY_MS) {
    await new Promise<void>((resolve) => turn(resolve));
    last = performance.now();
  }
  signal?.throwIfAborted();
}

/** Called around work that holds this thread; what `begin` returns ends it. */
let begin: (() => () => void) | undefined;

/** Sets what happens while this thread is held: a program that listens to Ctrl-C can't hear it then. */
export function whileHeld(hook: (() => () => void) | undefined): void {
  begin = hook;
}

/** Runs work that holds this thread for long and can't be cut into pieces. */
export function hold<T>(work: () => T): T {
  const end = begin?.();
  try {
    return work();
  } finally {
    end?.();
  }
}
