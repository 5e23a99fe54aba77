/** Hashes of what a snapshot is made from: SHA-256 over fields with their names and lengths, so that none runs into the next. */
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";

/** A field under its name. */
export type Tagged = readonly [tag: string, value: string | Uint8Array];

type RunningHash = ReturnType<typeof sha256.create>;

/** Hexadecimal SHA-256 of all fields in order: of each its name's length, its name, its value's length, its value. */
export function taggedHash(fields: Iterable<Tagged>): string {
  const hash = sha256.create();
  for (const field of fields) addTagged(hash, field);
  return bytesToHex(hash.digest());
}

function addTagged(hash: RunningHash, [tag, value]: Tagged): void {
  for (const part of [tag, value]) {
    const bytes = typeof part === "string" ? new TextEncoder().encode(part) : part;
    hash.update(littleEndian(bytes.length)).update(bytes);
  }
}

function littleEndian(number: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, number, true);
  return bytes;
}

/** Token ids as they are hashed and stored: 32 bits each, little end first. */
export function idBytes(ids: ArrayLike<number>): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(4 * ids.length), view = new DataView(bytes.buffer);
  for (let i = 0; i < ids.length; i++) view.setUint32(4 * i, ids[i], true);
  return bytes;
}

/**
 * Hexadecimal SHA-256 of the first n of `ids` for each n of `lengths` (ascending, none above the ids), keyed by the salt.
 * One pass: O(ids).
 */
export function prefixHashes(ids: readonly number[], lengths: readonly number[], salt: string): string[] {
  const hash = sha256.create();
  addTagged(hash, ["palisade token prefix, salt", salt]);
  let done = 0;
  return lengths.map((length) => {
    hash.update(idBytes(ids.slice(done, length)));
    done = length;
    // A copy is finished; the running one goes on.
    return bytesToHex(hash.clone().update(littleEndian(length)).digest());
  });
}
