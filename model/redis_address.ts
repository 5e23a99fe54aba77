/** Addresses of Valkey and Redis servers, as a queue and a store of snapshots are given them. */
import type { RedisOptions } from "ioredis";
import { type PalisadeError, type Said, say } from "../core/errors.ts";

export interface RedisAddress {
  readonly options: RedisOptions;
  /** The address without its password. */
  readonly shown: string;
}

/**
 * `redis://[user[:password]@]host[:port][/database]`; `rediss:` is TLS. Marks of their own in user and password are
 * written as in any URL: `%40` for an @. `as`: what is addressed, in a message. Throws what `refuse` makes of one.
 */
export function parseRedisUrl(text: string, as: Said, refuse: (message: Said) => PalisadeError): RedisAddress {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const database = /^\/?(\d{0,4})$/.exec(url?.pathname ?? "");
  const problem = url ? problemOf(url, text) : /^rediss?:/.test(text) ? "it is no URL; ports end at 65535" : undefined;
  if (!url || !database || problem) {
    const wanted = "redis://HOST:PORT/DATABASE, or rediss:// for TLS; port and database may be left out";
    const reason = problem ? `: ${problem}` : "";
    throw refuse(say`Can't use ${shownRefused(text, url)} as ${as}${reason}: want ${wanted}`);
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

/** The message, or the code of errors that have none (several addresses tried at once). */
export function reasonOf(error: Error & { code?: string }): string {
  return error.message || error.code || error.name;
}
