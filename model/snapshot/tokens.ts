/**
 * Which tokens were read. With the ids at hand prefixes are compared token by token; a snapshot that was saved without
 * its text has SHA-256 of some prefixes instead, keyed by the salt.
 */
import { idBytes, prefixHashes, taggedHash } from "./hash.ts";

/** Prefixes of this many tokens, and of multiples of it, have a hash, so that a difference can be told roughly. */
const STEP = 512;
/** So do the last ones: a text that grew is often cut otherwise into tokens just before its old end. */
const LAST = 96;

/** The tokens of a context. */
export interface TokenRecord {
  readonly count: number;
  /** The tenant's salt, which keys the hashes. */
  readonly salt: string;
  /** Ascending; the last one is `count`. */
  readonly lengths: readonly number[];
  /** Hexadecimal, one for each length. */
  readonly hashes: readonly string[];
  /** All of them, where they are known. */
  readonly ids?: readonly number[];
}

/** The record of tokens that are all known. */
export function recordOf(ids: readonly number[], salt: string): TokenRecord {
  const lengths: number[] = [];
  for (let length = 1; length <= ids.length; length++) {
    if (length % STEP === 0 || length >= ids.length - LAST) lengths.push(length);
  }
  return { count: ids.length, salt, lengths, hashes: prefixHashes(ids, lengths, salt), ids };
}

/** What tells these tokens from all others, for a snapshot's key. */
export function tokensHash({ count, salt, hashes }: TokenRecord): string {
  return taggedHash([["count", String(count)], ["salt", salt], ["tokens", hashes.at(-1)!]]);
}

/** How far a text's tokens are those that were read. */
export interface Match {
  /** Most tokens from the beginning on that are known to be the same, and of which a snapshot could be cut there. */
  readonly same: number;
  /** Where they differ, in words; undefined when all that were read are the same. */
  readonly differs?: string;
}

/** Compares what was read with `ids`. */
export function matchOf(read: TokenRecord, ids: readonly number[]): Match {
  return read.ids ? byTokens(read.ids, ids) : byHashes(read, ids);
}

function byTokens(read: readonly number[], ids: readonly number[]): Match {
  const most = Math.min(read.length, ids.length);
  let same = 0;
  while (same < most && read[same] === ids[same]) same++;
  if (same === read.length) return { same };
  const here = same === ids.length ? "the text ends" : `the text has token ${ids[same]}`;
  return { same, differs: `at token ${same} of ${read.length} it has ${read[same]}, ${here}` };
}

function byHashes({ count, salt, lengths, hashes }: TokenRecord, ids: readonly number[]): Match {
  const usable = lengths.filter((length) => length <= ids.length), own = prefixHashes(ids, usable, salt);
  const wrong = usable.findIndex((_, i) => own[i] !== hashes[i]);
  if (wrong === -1 && usable.length === lengths.length) return { same: count };
  const at = wrong === -1 ? usable.length : wrong, same = at === 0 ? 0 : lengths[at - 1];
  const place = `between tokens ${same} and ${lengths[at]} of ${count}`;
  return { same, differs: wrong === -1 ? `the text ends ${place}` : `the first token that differs is ${place}` };
}

/** The ids as bytes, for a snapshot that keeps its text. */
export function textBytes({ ids }: TokenRecord): Uint8Array<ArrayBuffer> | undefined {
  return ids && idBytes(ids);
}
