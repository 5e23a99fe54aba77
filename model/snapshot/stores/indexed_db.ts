/** Snapshots in a page's IndexedDB: one record each, whose content is a Blob. Any range of it is read by itself. */
import { resourceError } from "../../../core/errors.ts";
import { heeding } from "../signals.ts";
import { type ByteRange, checkSnapshotName, missingSnapshot, type SnapshotInfo, type SnapshotStore } from "../store.ts";
import { checkRange, storeFailure, WHERE } from "./failures.ts";

/** What of the database is used, in the words of its standard (Deno's types have none of it). */
interface Request<T> {
  readonly result: T;
  readonly error: DOMException | null;
  onsuccess: (() => void) | null;
  onerror: (() => void) | null;
}

interface OpenRequest extends Request<Database> {
  onupgradeneeded: (() => void) | null;
}

interface Database {
  createObjectStore(name: string, options: { keyPath: string }): unknown;
  transaction(store: string, mode: "readonly" | "readwrite"): Transaction;
  close(): void;
}

interface Transaction {
  readonly error: DOMException | null;
  oncomplete: (() => void) | null;
  onabort: (() => void) | null;
  objectStore(name: string): Table;
}

interface Table {
  get(name: string): Request<SnapshotRecord | undefined>;
  getAll(): Request<SnapshotRecord[]>;
  put(record: SnapshotRecord): Request<unknown>;
  delete(name: string): Request<unknown>;
}

interface SnapshotRecord {
  readonly name: string;
  readonly content: Blob;
  readonly used: number;
}

const page = globalThis as { readonly indexedDB?: { open(name: string, version: number): OpenRequest } };

const TABLE = "snapshots";

/**
 * The snapshots of a database of the site, made when it isn't there. A put holds its content in memory until all of it
 * has come. PalisadeErrors: resources `store.no-indexed-db`; of this and its methods resources `store.full`,
 * `store.failed`, besides a store's own.
 */
export async function indexedDbStore(database = "palisade"): Promise<SnapshotStore> {
  if (!page.indexedDB) throw resourceError("store.no-indexed-db", "There is no IndexedDB here", WHERE);
  const place = `the page's database ${database}`, opening = page.indexedDB.open(database, 1);
  opening.onupgradeneeded = () => void opening.result.createObjectStore(TABLE, { keyPath: "name" });
  try {
    return heeding(new IndexedDbStore(await settled(opening), place));
  } catch (error) {
    throw failureOf(error as Error, place);
  }
}

/** The result of a request. */
function settled<T>(request: Request<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function failureOf(error: Error, place: string): Error {
  if (!(error instanceof DOMException)) return error;
  return storeFailure(error.name === "QuotaExceededError" ? "full" : "failed", place, error);
}

class IndexedDbStore implements SnapshotStore {
  readonly place: string;
  readonly #database: Database;

  constructor(database: Database, place: string) {
    this.#database = database;
    this.place = place;
  }

  async get(name: string, range?: ByteRange): Promise<Uint8Array<ArrayBuffer>> {
    const record = await this.#record(name);
    if (!record) throw missingSnapshot(name, this.place);
    if (range) checkRange(range, record.content.size);
    const { content } = record, part = range ? content.slice(range.offset, range.offset + range.length) : content;
    return new Uint8Array(await this.#asked(() => part.arrayBuffer()));
  }

  async put(name: string, content: Uint8Array | AsyncIterable<Uint8Array>): Promise<void> {
    checkSnapshotName(name);
    const parts: Uint8Array<ArrayBuffer>[] = [];
    for await (const part of content instanceof Uint8Array ? [content] : content) parts.push(part.slice());
    await this.#change((table) => table.put({ name, content: new Blob(parts), used: Date.now() }));
  }

  async head(name: string): Promise<SnapshotInfo | undefined> {
    const record = await this.#record(name);
    return record && infoOf(record);
  }

  async list(prefix = ""): Promise<SnapshotInfo[]> {
    const table = this.#database.transaction(TABLE, "readonly").objectStore(TABLE);
    // A Blob in a record is a reference: its bytes are not read. Records come by name.
    const records = await this.#asked(() => settled(table.getAll()));
    return records.filter(({ name }) => name.startsWith(prefix)).map(infoOf);
  }

  async delete(name: string): Promise<boolean> {
    checkSnapshotName(name);
    return await this.#change((table, there) => there && table.delete(name), name);
  }

  async touch(name: string): Promise<void> {
    checkSnapshotName(name);
    await this.#change((table, there) => there && table.put({ ...there, used: Date.now() }), name);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve(this.#database.close());
  }

  async #record(name: string): Promise<SnapshotRecord | undefined> {
    checkSnapshotName(name);
    const table = this.#database.transaction(TABLE, "readonly").objectStore(TABLE);
    return await this.#asked(() => settled(table.get(name)));
  }

  /**
   * One transaction, kept once it is on the disk; with `name`, `act` gets what is there. Whether something was there.
   */
  #change(act: (table: Table, there?: SnapshotRecord) => unknown, name?: string): Promise<boolean> {
    return this.#asked(() =>
      new Promise((resolve, reject) => {
        const transaction = this.#database.transaction(TABLE, "readwrite"), table = transaction.objectStore(TABLE);
        let there: SnapshotRecord | undefined;
        transaction.oncomplete = () => resolve(there !== undefined);
        transaction.onabort = () => reject(transaction.error);
        if (name === undefined) return void act(table);
        const asked = table.get(name);
        asked.onsuccess = () => act(table, there = asked.result);
      })
    );
  }

  async #asked<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw failureOf(error as Error, this.place);
    }
  }
}

function infoOf({ name, content, used }: SnapshotRecord): SnapshotInfo {
  return { name, size: content.size, used };
}
