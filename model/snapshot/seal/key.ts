/**
 * What a sealed snapshot is opened by: a passphrase, or 32 bytes of a key file. Both become one key per file, so that
 * counters can be nonces.
 */
import { scryptAsync } from "@noble/hashes/scrypt.js";
import { inputError, resourceError } from "../../../core/errors.ts";

/** A secret that its owner keeps apart from the file. Make it with {@link passphraseSecret} or {@link keySecret}. */
export type Secret =
  | { readonly kind: "passphrase"; readonly text: string }
  | { readonly kind: "key"; readonly bytes: Uint8Array<ArrayBuffer> };

/** What a try at a passphrase costs: scrypt's numbers (RFC 7914). Memory is 128 · 2^logN · r bytes. */
export interface ScryptCost {
  readonly logN: number;
  readonly r: number;
  readonly p: number;
}

/** OWASP's least for scrypt (128 MiB, about half a second): Password Storage Cheat Sheet. */
export const SCRYPT_COST: ScryptCost = { logN: 17, r: 8, p: 1 };

/** The most a file may ask for, so that opening a hostile one takes no more than 256 MiB and a few seconds. */
const MOST_MEMORY = 2 ** 28, MOST_PASSES = 4;

/** Bytes of a key, and of the salt that makes the key of one file. */
export const KEY_BYTES = 32;

/** @throws PalisadeError input `secret.empty`. */
export function passphraseSecret(text: string): Secret {
  if (text === "") {
    throw inputError("secret.empty", "The passphrase is empty: want at least one character", "passphrase");
  }
  // The same passphrase typed on two systems may come in two Unicode forms.
  return { kind: "passphrase", text: text.normalize("NFKC") };
}

/**
 * The key in a key file: 32 bytes as they are, or 64 hexadecimal digits with blanks around.
 * @throws PalisadeError input `secret.key-file`.
 */
export function keySecret(content: Uint8Array, name = "the key"): Secret {
  if (content.length === KEY_BYTES) return { kind: "key", bytes: content.slice() };
  // A larger file is not looked into: it is no key.
  const text = content.length > 256 ? "" : new TextDecoder().decode(content).trim();
  if (/^[0-9a-f]{64}$/i.test(text)) {
    return {
      kind: "key",
      bytes: Uint8Array.from({ length: KEY_BYTES }, (_, i) => parseInt(text.substr(2 * i, 2), 16)),
    };
  }
  const message = `${name} is no key: want 32 bytes, or 64 hexadecimal digits; it has ${content.length} bytes`;
  throw inputError("secret.key-file", message, name);
}

/** A new key as a key file holds it: 64 hexadecimal digits and a line break. */
export function newKeyFile(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(KEY_BYTES));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("") + "\n";
}

/** Why a file's numbers are refused; undefined when they will do. */
export function costProblem({ logN, r, p }: ScryptCost): string | undefined {
  if (logN < 1 || r < 1 || p < 1 || p > MOST_PASSES) return "its numbers are out of range";
  if (logN > 28 || 128 * 2 ** logN * r > MOST_MEMORY) return "it asks for more than 256 MiB";
  return undefined;
}

/**
 * The secret as key material for HKDF, which `salt` (32 bytes of one file) is mixed into. A passphrase goes through
 * scrypt first. @throws PalisadeError resources `seal.no-crypto` in a page that is not secure.
 */
export async function keyMaterial(secret: Secret, salt: Uint8Array, cost: ScryptCost): Promise<CryptoKey> {
  const raw = secret.kind === "key" ? secret.bytes : await stretchedOnce(secret, salt, cost);
  return await subtle().importKey("raw", raw, "HKDF", false, ["deriveKey", "deriveBits"]);
}

/** A file's header is opened first, then the file: the last key that a passphrase was made into is not made again. */
const made = new WeakMap<Secret, { readonly name: string; readonly raw: ReturnType<typeof stretched> }>();

function stretchedOnce(secret: Secret & { kind: "passphrase" }, salt: Uint8Array, cost: ScryptCost) {
  const name = `${salt} ${cost.logN} ${cost.r} ${cost.p}`, before = made.get(secret);
  if (before?.name === name) return before.raw;
  const raw = stretched(secret.text, salt, cost);
  made.set(secret, { name, raw });
  return raw;
}

async function stretched(text: string, salt: Uint8Array, { logN, r, p }: ScryptCost): Promise<Uint8Array<ArrayBuffer>> {
  return (await scryptAsync(new TextEncoder().encode(text), salt, { N: 2 ** logN, r, p, dkLen: KEY_BYTES })).slice();
}

/** The parameters of HKDF for one purpose: keys for different purposes have nothing in common. */
export function hkdf(salt: Uint8Array<ArrayBuffer>, purpose: string): HkdfParams {
  return { name: "HKDF", hash: "SHA-256", salt, info: new TextEncoder().encode(purpose) };
}

/** WebCrypto, which pages have only over HTTPS or on localhost. */
export function subtle(): SubtleCrypto {
  const found = globalThis.crypto?.subtle;
  if (found) return found;
  throw resourceError("seal.no-crypto", "No encryption here: pages have WebCrypto only over HTTPS or on localhost");
}
