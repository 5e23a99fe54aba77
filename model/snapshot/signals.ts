/** What an abort signal means to a store, the same for all of them. */
import { unlessAborted } from "../shared_work.ts";
import { pieces } from "./stores/failures.ts";
import type { ByteRange, SnapshotInfo, SnapshotStore, StoreOptions } from "./store.ts";

/** Content that comes in one array is handed over in so many bytes, so that an abort is heard between them. */
const PIECE_BYTES = 2 ** 20;

/**
 * A store whose calls end by their signal, also where its client knows none. An aborted put has cleaned up behind itself
 * when it rejects; what else is under way goes on unseen.
 */
export function heeding(store: SnapshotStore): SnapshotStore {
  const { touch } = store;
  return {
    place: store.place,
    get: (name: string, range?: ByteRange, options: StoreOptions = {}) =>
      untilAborted(() => store.get(name, range, options), options.signal),
    async put(name: string, content: Uint8Array | AsyncIterable<Uint8Array>, options: StoreOptions = {}) {
      const { signal } = options;
      try {
        await store.put(name, signal ? until(content, signal) : content, options);
      } catch (error) {
        // A client has its own words for it.
        signal?.throwIfAborted();
        throw error;
      }
    },
    head: (name: string, options: StoreOptions = {}): Promise<SnapshotInfo | undefined> =>
      untilAborted(() => store.head(name, options), options.signal),
    list: (prefix?: string, options: StoreOptions = {}) =>
      untilAborted(() => store.list(prefix, options), options.signal),
    delete: (name: string, options: StoreOptions = {}) =>
      untilAborted(() => store.delete(name, options), options.signal),
    ...touch && {
      touch: (name: string, options: StoreOptions = {}) =>
        untilAborted(() => touch.call(store, name, options), options.signal),
    },
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}

/** `content`, which ends by the signal's reason between two pieces of it, and behind the last. */
async function* until(
  content: Uint8Array | AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  for await (const piece of content instanceof Uint8Array ? pieces(content, PIECE_BYTES) : content) {
    signal.throwIfAborted();
    yield piece;
  }
  signal.throwIfAborted();
}

async function untilAborted<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  signal?.throwIfAborted();
  return await unlessAborted(work(), signal);
}
