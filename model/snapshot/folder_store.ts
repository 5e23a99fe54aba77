/** Snapshots as files of a folder, `NAME.palisade`, which only their owner can read. */
import { hostOf } from "../../runtime/host.ts";
import type { ByteSource, Host, Runtime } from "../../runtime/interface.ts";
import { writeWhole } from "../../runtime/output.ts";
import { heeding } from "./signals.ts";
import { checkSnapshotName, missingSnapshot, type SnapshotInfo, type SnapshotStore } from "./store.ts";

/** How the files of snapshots end. */
export const EXTENSION = ".palisade";

/**
 * The snapshots of the folder at `path`, which is made when the first one is put there. PalisadeErrors of its methods:
 * `file.*` besides a store's own.
 */
export function folderStore(runtime: Runtime, path: string): SnapshotStore {
  return heeding(new FolderStore(runtime, hostOf(runtime, "keep snapshots in a folder"), path));
}

class FolderStore implements SnapshotStore {
  readonly place: string;
  readonly #runtime: Runtime;
  readonly #host: Host;

  constructor(runtime: Runtime, host: Host, path: string) {
    this.#runtime = runtime;
    this.#host = host;
    this.place = path;
  }

  async get(name: string, range?: { offset: number; length: number }): Promise<Uint8Array<ArrayBuffer>> {
    const source = await this.#open(name);
    try {
      return await source.read(range?.offset ?? 0, range?.length ?? source.size);
    } finally {
      await source.close();
    }
  }

  async put(name: string, content: Uint8Array | AsyncIterable<Uint8Array>): Promise<void> {
    const path = this.#pathOf(name);
    await this.#host.makeFolder(this.place);
    await writeWhole(this.#runtime, path, content, { secret: true });
  }

  async head(name: string): Promise<SnapshotInfo | undefined> {
    const found = await this.#host.info(this.#pathOf(name));
    return found?.kind === "file" ? { name, size: found.size, used: found.modified } : undefined;
  }

  async list(prefix = ""): Promise<SnapshotInfo[]> {
    const names = (await this.#host.list(this.place)).flatMap((file) => nameOf(file) ?? []);
    const found: SnapshotInfo[] = [];
    for (const name of names.filter((each) => each.startsWith(prefix)).sort()) {
      const info = await this.head(name);
      if (info) found.push(info);
    }
    return found;
  }

  async delete(name: string): Promise<boolean> {
    if (!await this.head(name)) return false;
    await this.#host.remove(this.#pathOf(name));
    return true;
  }

  async touch(name: string): Promise<void> {
    await this.#host.touch(this.#pathOf(name));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }

  #pathOf(name: string): string {
    checkSnapshotName(name);
    return this.#host.join(this.place, `${name}${EXTENSION}`);
  }

  async #open(name: string): Promise<ByteSource> {
    if (!await this.head(name)) throw missingSnapshot(name, this.place);
    return await this.#runtime.openFile(this.#pathOf(name));
  }
}

/** The snapshot that a file of the folder is; undefined for a file of another kind. */
function nameOf(file: string): string | undefined {
  if (!file.endsWith(EXTENSION)) return undefined;
  const name = file.slice(0, -EXTENSION.length);
  try {
    checkSnapshotName(name);
    return name;
  } catch {
    return undefined;
  }
}
