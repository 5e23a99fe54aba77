/** Where snapshots lie: what every store does, whatever it is made of. */
import { inputError } from "../../core/errors.ts";
import { type ByteSink, type ByteSource, pushed } from "./bytes.ts";

/** A snapshot in a store, without its content. */
export interface SnapshotInfo {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** When it was written or last used ({@link SnapshotStore.touch}), milliseconds since 1970. */
  readonly used: number;
}

/** Some of a snapshot's bytes. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

export interface StoreOptions {
  /** Ends the call, which rejects with its reason. */
  readonly signal?: AbortSignal;
}

/**
 * Snapshots by name. Names are checked by {@link checkSnapshotName} before a store does anything with them.
 * PalisadeErrors (input): `snapshot.name`, `snapshot.missing`; besides those of what it is made of.
 */
export interface SnapshotStore extends AsyncDisposable {
  /** For messages: a folder's path, a server's address without secrets. */
  readonly place: string;
  /**
   * All of a snapshot, or a range of it, which must lie inside: else RangeError. `snapshot.missing` when there is none of
   * that name.
   */
  get(name: string, range?: ByteRange, options?: StoreOptions): Promise<Uint8Array<ArrayBuffer>>;
  /**
   * Puts a snapshot in place of what had that name. Whoever reads meanwhile, or after a failure, finds the old one or the
   * new one, whole. When `content` throws or the signal aborts before all of it has come, nothing is changed.
   */
  put(name: string, content: Uint8Array | AsyncIterable<Uint8Array>, options?: StoreOptions): Promise<void>;
  /** Undefined when there is none. */
  head(name: string, options?: StoreOptions): Promise<SnapshotInfo | undefined>;
  /** Those whose names begin with `prefix`, default all, by name. */
  list(prefix?: string, options?: StoreOptions): Promise<SnapshotInfo[]>;
  /** False when there was none. Aborted, it may have been done. */
  delete(name: string, options?: StoreOptions): Promise<boolean>;
  /** Notes that it was used now, so that the oldest unused one can be told; a store that can't leaves it out. */
  touch?(name: string, options?: StoreOptions): Promise<void>;
}

/** Letters, digits, `.`, `_` and `-`; a dot in front is for what is hidden. */
const NAME = /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$/;

/**
 * Refuses what is no snapshot's name, before it becomes a path or a key.
 * @throws PalisadeError input `snapshot.name`.
 */
export function checkSnapshotName(name: string): void {
  if (NAME.test(name)) return;
  const shown = JSON.stringify(name.slice(0, 80));
  const message = `A snapshot can't be called ${shown}: want 1 to 64 letters, digits, ".", "_" or "-", no dot first`;
  throw inputError("snapshot.name", message, "snapshot");
}

/** What a store says where there is no snapshot of a name: input `snapshot.missing`. */
export function missingSnapshot(name: string, place: string) {
  return inputError("snapshot.missing", `There is no snapshot ${name} in ${place}`, "snapshot");
}

/** A snapshot of a store as a source of bytes. @throws PalisadeError input `snapshot.missing`. */
export async function storeSource(
  store: SnapshotStore,
  name: string,
  options: StoreOptions = {},
): Promise<ByteSource> {
  const found = await store.head(name, options);
  if (!found) throw missingSnapshot(name, store.place);
  return {
    name,
    size: found.size,
    read: (offset, length) => store.get(name, { offset, length }, options),
    close: () => Promise.resolve(),
  };
}

/** A sink whose commit puts a snapshot into a store. @throws PalisadeError input `snapshot.name`. */
export function storeSink(store: SnapshotStore, name: string, options: StoreOptions = {}): ByteSink {
  checkSnapshotName(name);
  return pushed((chunks) => store.put(name, chunks, options));
}
