/** The connection to a Valkey or Redis server, and BullMQ, which is only loaded when a queue is asked for. */
import type { Redis } from "ioredis";
import { option, resourceError, say } from "../../core/errors.ts";
import { parseRedisUrl, reasonOf, type RedisAddress } from "../../model/redis_address.ts";
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

/** @throws PalisadeError usage `queue.url`; see `parseRedisUrl`. */
export function parseQueueUrl(text: string): RedisAddress {
  return parseRedisUrl(text, say`${option("queue")}`, (message) => usageError("queue.url", message, option("queue")));
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
