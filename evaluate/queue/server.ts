/** The connection to a Valkey or Redis server, and BullMQ, which is only loaded when a queue is asked for. */
import type { Redis, RedisOptions } from "ioredis";
import { option, resourceError, say } from "../../core/errors.ts";
import { KEY_PREFIX, usageError } from "./protocol.ts";

type Bullmq = typeof import("bullmq");

/** How long the first connection may take, milliseconds. */
const CONNECT_MS = 5000;

export interface QueueServer extends AsyncDisposable {
  readonly bullmq: Bullmq;
  /** For plain commands; BullMQ's queues share it and workers copy it for their blocking commands. */
  readonly redis: Redis;
  /** What every queue and worker is opened with. */
  readonly options: { readonly connection: Redis; readonly prefix: string };
  /** The address without its password. */
  readonly shown: string;
}

export interface QueueAddress {
  readonly options: RedisOptions;
  readonly shown: string;
}

/**
 * `redis://[user[:password]@]host[:port][/database]`; `rediss:` is TLS. Marks of their own in user and password are
 * written as in any URL: `%40` for an @. @throws PalisadeError usage `queue.url`.
 */
export function parseQueueUrl(text: string): QueueAddress {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const database = /^\/?(\d{0,4})$/.exec(url?.pathname ?? "");
  const problem = url ? problemOf(url, text) : /^rediss?:/.test(text) ? "it is no URL; ports end at 65535" : undefined;
  if (!url || !database || problem) {
    const wanted = "redis://HOST:PORT/DATABASE, or rediss:// for TLS; port and database may be left out";
    const reason = problem ? `: ${problem}` : "";
    const message = say`Can't use ${shownRefused(text, url)} as ${option("queue")}${reason}: want ${wanted}`;
    throw usageError("queue.url", message, option("queue"));
  }
  return {
    shown: withoutPassword(url),
    options: {
      // Square brackets of IPv6 addresses belong to the URL only.
      host: url.hostname.replace(/^\[(.*)\]$/, "$1"),
      port: Number(url.port || 6379),
      username: decoded(url.username) || undefined,
      password: decoded(url.password) || undefined,
      db: Number(database[1] || 0),
      ...(url.protocol === "rediss:" && { tls: {} }),
    },
  };
}

/** What of an address can't be meant, or would be ignored; empty for another scheme, which says enough. */
function problemOf(url: URL, text: string): string | undefined {
  if (!/^rediss?:$/.test(url.protocol)) return "another scheme";
  if (!/^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)$/i.test(url.hostname)) return "its host is no name in ASCII (xn--… for others)";
  if (url.port === "0") return "there is no port 0";
  if (url.search !== "" || url.hash !== "" || /[?#]/.test(text)) return "nothing may follow the database";
  for (const part of ["username", "password"] as const) {
    const value = decoded(url[part]);
    if (value === undefined) return `its ${part} has a % that begins no escape: write %25 for it`;
    if (value.includes("\0")) return `its ${part} has a NUL character`;
  }
  return undefined;
}

/** Undefined when the escapes are none, or are no UTF-8. */
function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}

/** What was given, as far as it can't be a password: after an @ or a colon there may be one. */
function shownRefused(text: string, url: URL | undefined): string {
  if (url && /^rediss?:$/.test(url.protocol)) return withoutPassword(url);
  const scheme = /^[a-z][a-z0-9+.-]*:/i.exec(text)?.[0];
  if (scheme) return `${scheme}…`;
  return /[:@]/.test(text) ? "what is no URL" : `${JSON.stringify(text.slice(0, 80))}, which is no URL,`;
}

function withoutPassword(url: URL): string {
  const { protocol, username, host, pathname } = url;
  return `${protocol}//${username === "" ? "" : `${username}@`}${host}${pathname === "/" ? "" : pathname}`;
}

/**
 * Connects. Once connected, a server that goes away is waited for; `onNote` hears of it, once per outage.
 * @throws PalisadeError usage `queue.url`; resources `queue.missing` (no BullMQ), `queue.unreachable`, `queue.refused`.
 */
export async function openServer(url: string, onNote: (note: string) => void): Promise<QueueServer> {
  const { options, shown } = parseQueueUrl(url);
  const { bullmq, Redis } = await loadBullmq();
  let connected = false, away = false, last: Error | undefined;
  const redis = new Redis({
    ...options,
    lazyConnect: true,
    connectTimeout: CONNECT_MS,
    maxRetriesPerRequest: null,
    retryStrategy: (times) => connected ? Math.min(times * 200, 3000) : null,
  });
  redis.on("error", (error) => {
    last = error;
    if (connected && !away) onNote(`lost ${shown} (${reasonOf(error)}); waiting for it`);
    away = connected;
  });
  redis.on("ready", () => {
    if (away) onNote(`${shown} is back`);
    away = false;
  });
  try {
    await redis.connect();
    await redis.ping();
  } catch (error) {
    redis.disconnect();
    throw connectError(shown, last ?? error as Error);
  }
  connected = true;
  return {
    bullmq,
    redis,
    shown,
    options: { connection: redis, prefix: KEY_PREFIX },
    [Symbol.asyncDispose]: () => Promise.resolve(redis.disconnect()),
  };
}

async function loadBullmq(): Promise<{ bullmq: Bullmq; Redis: typeof import("ioredis").Redis }> {
  try {
    return { bullmq: await import("bullmq"), Redis: (await import("ioredis")).Redis };
  } catch (cause) {
    const message = "No queue without BullMQ: install bullmq@6.7.0 and ioredis@6.0.0 beside palisade";
    throw resourceError("queue.missing", message, option("queue"), cause);
  }
}

function connectError(shown: string, error: Error) {
  const reason = reasonOf(error);
  if (/^(NOAUTH|WRONGPASS|NOPERM|ERR)\b/.test(reason)) {
    return resourceError("queue.refused", `${shown} refused the connection: ${reason}`, option("queue"), error);
  }
  const advice = "is a Valkey or Redis server running there?";
  return resourceError("queue.unreachable", `Can't reach ${shown}: ${reason}; ${advice}`, option("queue"), error);
}

/** The message, or the code of errors that have none (several addresses tried at once). */
function reasonOf(error: Error & { code?: string }): string {
  return error.message || error.code || error.name;
}
