/**
 * Snapshots on a Valkey or Redis server.
 *
 * A snapshot is cut into parts of 8 MiB under a version of its own. The table `palisade:{snapshots}:names` says which
 * version a name has, so one step replaces the whole. Parts end by themselves unless a put is finished: one that is cut
 * off leaves nothing for longer than an hour, and who reads the old version may go on for a minute.
 */
import type { Redis } from "ioredis";
import { PalisadeError } from "../../../core/errors.ts";
import { parseRedisUrl, reasonOf } from "../../redis_address.ts";
import { heeding } from "../signals.ts";
import { type ByteRange, checkSnapshotName, missingSnapshot, type SnapshotInfo, type SnapshotStore } from "../store.ts";
import { loadValkeyClient } from "./clients.ts";
import { badPlace, checkRange, pieces, storeFailure } from "./failures.ts";

/** All keys lie in one slot of a cluster: what the braces hold decides. */
const PREFIX = "palisade:{snapshots}:";
const NAMES = `${PREFIX}names`, USED = `${PREFIX}used`;
/** A value of Redis may have 512 MB; smaller ones don't hold up others. */
const PART_BYTES = 2 ** 23;
/** Until the parts of a put that was cut off end, and those of a version that was replaced; seconds. */
const UNFINISHED = 3600, REPLACED = 60;
/** How long the first connection may take, milliseconds. */
const CONNECT_MS = 5000;

/** What the table of names says. */
interface Entry {
  readonly version: string;
  readonly size: number;
  readonly parts: number;
  readonly partBytes: number;
}

/** KEYS: the tables, then the new parts; ARGV: name, entry, time. Gives back the entry that was there. */
const FINISH = `
  for i = 3, #KEYS do
    if redis.call('PERSIST', KEYS[i]) == 0 then return redis.error_reply('GONE a part ended before the put did') end
  end
  local old = redis.call('HGET', KEYS[1], ARGV[1])
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
  return old`;
/** KEYS: the tables; ARGV: name. Gives back the entry. */
const DELETE = `
  local old = redis.call('HGET', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  return old`;
/** KEYS: the tables; ARGV: name, time. */
const TOUCH = `if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end`;

/** How snapshots lie on a server. */
export interface ValkeyOptions {
  /** Bytes of a part; default 8 MiB. */
  readonly partBytes?: number;
}

/**
 * The snapshots of a Valkey or Redis server, `redis://…` as `parseRedisUrl` takes it; it wants the package ioredis.
 * PalisadeErrors: input `store.url`; resources `store.package`; of this and its methods resources `store.unreachable`,
 * `store.refused`, `store.full`, `store.failed`, besides a store's own.
 */
export async function valkeyStore(url: string, options: ValkeyOptions = {}): Promise<SnapshotStore> {
  const address = parseRedisUrl(url, ["a store of snapshots"], (said) => badPlace(said.join("")));
  const Redis = await loadValkeyClient();
  let connected = false, last: Error | undefined;
  const redis = new Redis({
    ...address.options,
    lazyConnect: true,
    connectTimeout: CONNECT_MS,
    // Once connected, a server that went away is asked for again and again, but a command doesn't wait for it.
    maxRetriesPerRequest: 2,
    retryStrategy: (times) => connected ? Math.min(times * 100, 3000) : null,
  });
  redis.on("error", (error) => last = error);
  try {
    await redis.connect();
    await redis.ping();
  } catch (error) {
    redis.disconnect();
    throw translated(address.shown, last ?? error as Error);
  }
  connected = true;
  return heeding(new ValkeyStore(redis, address.shown, options.partBytes ?? PART_BYTES));
}

function translated(place: string, error: Error): Error {
  if (error instanceof PalisadeError || error instanceof RangeError) return error;
  const reason = reasonOf(error);
  const told = Object.assign(new Error(reason, { cause: error }), { name: error.name });
  if (/^(NOAUTH|WRONGPASS|NOPERM)\b/.test(reason)) return storeFailure("refused", place, told);
  if (/^(OOM|MISCONF)\b/.test(reason)) return storeFailure("full", place, told);
  const away = /^Connection is closed|ECONN|ENOTFOUND|EHOSTUNREACH|EPIPE|ETIMEDOUT|max retries/i;
  return storeFailure(away.test(`${reason} ${error.name}`) ? "unreachable" : "failed", place, told);
}

class ValkeyStore implements SnapshotStore {
  readonly place: string;
  readonly #redis: Redis;
  readonly #partBytes: number;

  constructor(redis: Redis, place: string, partBytes: number) {
    this.#redis = redis;
    this.place = place;
    this.#partBytes = partBytes;
  }

  async get(name: string, range?: ByteRange): Promise<Uint8Array<ArrayBuffer>> {
    checkSnapshotName(name);
    return await this.#asked(async () => {
      for (let version = "";;) {
        const entry = await this.#entry(name);
        if (!entry) throw missingSnapshot(name, this.place);
        const bytes = await this.#read(entry, range ?? { offset: 0, length: entry.size });
        if (bytes) return bytes;
        // Replaced meanwhile: once more. The same version again means that the server lost some of it.
        if (entry.version === version) throw new Error(`a part of the snapshot ${name} is gone`);
        version = entry.version;
      }
    });
  }

  async put(name: string, content: Uint8Array | AsyncIterable<Uint8Array>): Promise<void> {
    checkSnapshotName(name);
    const version = crypto.randomUUID(), keys: string[] = [], size = await this.#upload(version, keys, content);
    const entry: Entry = { version, size, parts: keys.length, partBytes: this.#partBytes };
    const parameters = [NAMES, USED, ...keys, name, JSON.stringify(entry), `${Date.now()}`];
    // A server that goes away now may have finished all the same. So the parts are left to it: they stay, or end.
    const old = await this.#asked(() => this.#redis.eval(FINISH, 2 + keys.length, ...parameters));
    await this.#asked(() => this.#let(entryOf(old), (key) => this.#redis.expire(key, REPLACED)));
  }

  /** Uploads the parts, whose keys are added to `keys`, and returns the bytes they have. */
  async #upload(version: string, keys: string[], content: Uint8Array | AsyncIterable<Uint8Array>): Promise<number> {
    let size = 0;
    try {
      for await (const piece of pieces(content, this.#partBytes)) {
        keys.push(partKey(version, keys.length));
        size += piece.length;
        await this.#asked(() => this.#redis.set(keys.at(-1)!, asBuffer(piece), "EX", UNFINISHED));
      }
      return size;
    } catch (error) {
      if (keys.length > 0) await this.#redis.unlink(...keys).catch(() => {});
      throw error;
    }
  }

  async head(name: string): Promise<SnapshotInfo | undefined> {
    checkSnapshotName(name);
    return await this.#asked(async () => {
      const entry = await this.#entry(name);
      return entry && { name, size: entry.size, used: Number(await this.#redis.hget(USED, name)) };
    });
  }

  async list(prefix = ""): Promise<SnapshotInfo[]> {
    return await this.#asked(async () => {
      const [names, used] = [await this.#redis.hgetall(NAMES), await this.#redis.hgetall(USED)];
      const wanted = Object.keys(names).filter((name) => name.startsWith(prefix)).sort();
      return wanted.flatMap((name) => {
        const entry = entryOf(names[name]);
        return entry ? [{ name, size: entry.size, used: Number(used[name] ?? 0) }] : [];
      });
    });
  }

  async delete(name: string): Promise<boolean> {
    checkSnapshotName(name);
    return await this.#asked(async () => {
      const entry = entryOf(await this.#redis.eval(DELETE, 2, NAMES, USED, name));
      await this.#let(entry, (key) => this.#redis.unlink(key));
      return entry !== undefined;
    });
  }

  async touch(name: string): Promise<void> {
    checkSnapshotName(name);
    await this.#asked(() => this.#redis.eval(TOUCH, 2, NAMES, USED, name, `${Date.now()}`));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve(this.#redis.disconnect());
  }

  async #entry(name: string): Promise<Entry | undefined> {
    return entryOf(await this.#redis.hget(NAMES, name));
  }

  /** Undefined when a part is gone. */
  async #read(entry: Entry, range: ByteRange): Promise<Uint8Array<ArrayBuffer> | undefined> {
    checkRange(range, entry.size);
    const bytes = new Uint8Array(range.length), end = range.offset + range.length;
    for (let at = range.offset; at < end;) {
      const part = Math.floor(at / entry.partBytes), from = at - part * entry.partBytes;
      const length = Math.min(entry.partBytes - from, end - at);
      const found = await this.#redis.getrangeBuffer(partKey(entry.version, part), from, from + length - 1);
      if (found.length !== length) return undefined;
      bytes.set(found, at - range.offset);
      at += length;
    }
    return bytes;
  }

  /** Does something to the parts of a version that no name has any more. */
  async #let(entry: Entry | undefined, act: (key: string) => Promise<unknown>): Promise<void> {
    for (let i = 0; i < (entry?.parts ?? 0); i++) await act(partKey(entry!.version, i));
  }

  async #asked<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw translated(this.place, error as Error);
    }
  }
}

function partKey(version: string, part: number): string {
  return `${PREFIX}part:${version}:${part}`;
}

/** What a field of the table says; undefined for nothing, and for what no palisade wrote. */
function entryOf(text: unknown): Entry | undefined {
  if (typeof text !== "string") return undefined;
  try {
    const { version, size, parts, partBytes } = JSON.parse(text);
    const numbers = [size, parts, partBytes].every((n) => Number.isSafeInteger(n) && n >= 0);
    // As many parts as the size needs: so nothing that stands there can ask for more.
    const fits = numbers && partBytes > 0 && parts === Math.max(1, Math.ceil(size / partBytes));
    return typeof version === "string" && fits ? { version, size, parts, partBytes } : undefined;
  } catch {
    return undefined;
  }
}

/** The client knows bytes by this class alone. Node, Deno and Bun have it; pages have no sockets. */
function asBuffer(bytes: Uint8Array<ArrayBuffer>): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
