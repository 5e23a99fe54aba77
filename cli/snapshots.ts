/** Snapshots as commands are told of them: a file, a name, or the folder where they are kept. */
import { inputError, PalisadeError } from "../core/errors.ts";
import type { ByteSource } from "../model/snapshot/bytes.ts";
import { CACHE_BYTES, SnapshotCache } from "../model/snapshot/cache.ts";
import { EXTENSION } from "../model/snapshot/folder_store.ts";
import { FORMAT_KEY } from "../model/snapshot/format.ts";
import type { Secret } from "../model/snapshot/seal/key.ts";
import { type SnapshotInfo, type SnapshotStore, storeSource } from "../model/snapshot/store.ts";
import { openStore } from "../model/snapshot/stores/open.ts";
import { type Context, insideOf } from "../model/context.ts";
import { cacheFolder } from "../model/store/store.ts";
import type { OutputKind } from "../runtime/output.ts";
import type { Io } from "./io.ts";
import type { OptionTable, Values } from "./options.ts";
import { formatBytes } from "./print/format.ts";

/** Where read texts are kept. */
export const PLACE = {
  snapshots: {
    value: "place",
    help: "where read texts are kept: auto, off, a folder or store",
    shown: "auto",
    personal: true,
    words: () => ["auto", "off"],
    more: "where read texts are kept and found: `auto`, `off`, a folder or a store's address",
  },
  snapshotsCap: {
    value: "size",
    help: "most bytes kept there, 500MB or 2GiB",
    read: sizeOf,
    shown: `${CACHE_BYTES / 2 ** 30}GiB`,
    rare: true,
    more: "most bytes that are kept there: `500MB`, `2GiB`",
  },
} satisfies OptionTable;

/** The salt that keys snapshots. */
export const SALT = {
  salt: {
    value: "text",
    help: "keys snapshots: other salts can't use them",
    rare: true,
    secret: true,
    more: "keys snapshots: those made with another salt, or none, can't be used",
  },
} satisfies OptionTable;

type PlaceOptions = Values<typeof PLACE>;

const UNITS = { "": 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30, TIB: 2 ** 40 };

/** `500MB`, `2GiB`, or a number of bytes. */
export function sizeOf(text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?) ?([kmgt]i?b)?$/i.exec(text.trim()) ?? [];
  const bytes = Math.floor(Number(number) * UNITS[(unit ?? "").toUpperCase() as keyof typeof UNITS]);
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new RangeError("Want a size such as 500MB, 2GiB, or a number of bytes.");
}

/** What `--snapshots` says; undefined for `off`. */
export function placeOf({ snapshots }: Pick<PlaceOptions, "snapshots">, { runtime }: Io): string | undefined {
  const place = snapshots ?? "auto";
  if (place === "off") return undefined;
  return place === "auto" ? runtime.host!.join(cacheFolder(runtime), "snapshots") : place;
}

/** The cache of snapshots that the options name; undefined when it is off. The caller disposes of its store. */
export async function openCache(options: PlaceOptions, io: Io): Promise<SnapshotCache | undefined> {
  const place = placeOf(options, io);
  if (place === undefined) return undefined;
  return new SnapshotCache(await openStore(place, io.runtime), { maxBytes: options.snapshotsCap });
}

/** The same for commands that are about it. @throws PalisadeError usage `snapshots.off`. */
export async function wantCache(options: PlaceOptions, io: Io): Promise<SnapshotCache> {
  const cache = await openCache(options, io);
  if (cache) return cache;
  throw new PalisadeError("usage", "snapshots.off", "No snapshots are kept: --snapshots names a place, or auto", {
    where: "--snapshots",
  });
}

/** The snapshot of a store that a name, or its beginning of four letters or more, means. */
export async function namedIn(store: SnapshotStore, name: string, io: Io): Promise<SnapshotInfo> {
  const all = await store.list("", io), exact = all.find((each) => each.name === name);
  const meant = exact ? [exact] : all.filter((each) => name.length >= 4 && each.name.startsWith(name));
  if (meant.length === 1) return meant[0];
  const reason = meant.length > 1 ? `${meant.length} snapshots begin like that` : "there is none of that name";
  throw inputError("snapshot.missing", `Can't find the snapshot ${name} in ${store.place}: ${reason}`, "snapshot");
}

/** A snapshot by its file's path, or by its name among those that are kept. Both are the caller's to close. */
export async function openNamed(name: string, options: PlaceOptions, io: Io): Promise<ByteSource & AsyncDisposable> {
  const { runtime } = io, file = (await runtime.host?.info(name))?.kind === "file";
  if (file || placeOf(options, io) === undefined || /[/\\]/.test(name) || name.endsWith(EXTENSION)) {
    return closing(await runtime.openFile(name));
  }
  const { store } = await wantCache(options, io);
  return closing(await storeSource(store, (await namedIn(store, name, io)).name, io), store);
}

function closing(source: ByteSource, store?: SnapshotStore): ByteSource & AsyncDisposable {
  return {
    name: source.name,
    size: source.size,
    read: (offset, length) => source.read(offset, length),
    close: () => source.close(),
    async [Symbol.asyncDispose]() {
      await source.close();
      await store?.[Symbol.asyncDispose]();
    },
  };
}

/** A file that a snapshot may take the place of: another one, of whatever version. */
export const SNAPSHOT_FILE: OutputKind = {
  name: "a snapshot",
  async problem(file) {
    const start = new TextDecoder().decode(await file.read(0, Math.min(file.size, 256)));
    return start.includes(`"${FORMAT_KEY}"`) || start.startsWith("PALSEAL\0") ? undefined : "it begins otherwise";
  },
};

/** What the last part of a path calls a text. */
export function labelOf(path: string): string {
  return path === "-" ? "standard input" : path.split(/[/\\]/).at(-1)!;
}

/** Keeps what was read, if there is a place for it; what goes wrong there is no failure of the command. */
export async function keepRead(
  cache: SnapshotCache | undefined,
  context: Context,
  path: string,
  { say, encrypt }: { readonly say: (note: string) => void; readonly encrypt?: Secret },
): Promise<void> {
  const { state } = insideOf(context);
  // What came over standard input may be nowhere on the disk, and is not put there unasked.
  if (!cache || path === "-" || state.reused === state.tokens) return;
  try {
    const name = await cache.keep(context, { label: labelOf(path), ...(encrypt && { encrypt }) });
    const size = name && (await cache.store.head(name))?.size;
    if (size) say(`Kept for next time: ${formatBytes(size)} in ${cache.store.place} (--snapshots off keeps nothing)`);
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
    say(`Not kept for next time: ${error.message}`);
  }
}
