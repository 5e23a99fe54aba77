/**
 * What of a snapshot says that it is cloaked, and what of it besides rows is hidden: all that tells tokens, which are
 * hashes of beginnings, the ids, and the last token. Hashes of short beginnings could be guessed, token by token.
 */
import { inputError } from "../../../core/errors.ts";
import { idBytes } from "../hash.ts";
import { costProblem, KEY_BYTES, SCRYPT_COST, type ScryptCost, type Secret } from "../seal/key.ts";
import { Cloak, newSalt } from "./cloak.ts";

/** The metadata key. */
export const CLOAK_KEY = "cloak";

/** What is masked, each by a stream of its own. */
export const MASKS = { prefixes: 0, text: 1, lead: 2 } as const;

/** Bytes under a mask, or as they are without a cloak; masking twice shows them again. */
export async function masked<B extends Uint8Array>(cloak: Cloak | undefined, purpose: number, bytes: B) {
  return cloak ? await cloak.mask(purpose, bytes) : bytes;
}

/** Token ids likewise, 32 bits each. */
export async function maskedIds(cloak: Cloak | undefined, ids: readonly number[]): Promise<readonly number[]> {
  const bytes = await masked(cloak, MASKS.lead, idBytes(ids)), view = new DataView(bytes.buffer, bytes.byteOffset);
  return ids.map((_, i) => view.getUint32(4 * i, true));
}

interface CloakRecord {
  readonly version: 2;
  readonly kind: Secret["kind"];
  readonly cost: ScryptCost;
  readonly salt: string;
  readonly check: string;
}

/** The cloak of a new file, and its metadata. */
export async function newCloak(secret: Secret, cost: ScryptCost = SCRYPT_COST) {
  const salt = newSalt(), cloak = await Cloak.of(secret, salt, cost);
  const record: CloakRecord = { version: 2, kind: secret.kind, cost, salt: hex(salt), check: hex(cloak.check) };
  return { cloak, metadata: { [CLOAK_KEY]: JSON.stringify(record) } };
}

/**
 * The cloak of a file, by its metadata; undefined when it has none. `name`: the file's.
 * @throws PalisadeError input, where = `header`: `cloak.secret` (none was given), `cloak.secret-kind`, `cloak.key`,
 * `cloak.form`.
 */
export async function cloakOf(metadata: ReadonlyMap<string, string>, name: string, secret?: Secret) {
  const text = metadata.get(CLOAK_KEY);
  if (text === undefined) return undefined;
  const { kind, cost, salt, check } = recordOf(text, name);
  const wanted = kind === "key" ? "a key file" : "a passphrase";
  if (!secret) throw refuse("secret", name, `it is cloaked: pass ${wanted}`);
  if (kind !== secret.kind) throw refuse("secret-kind", name, `it was cloaked by ${wanted}`);
  const cloak = await Cloak.of(secret, unhex(salt), cost);
  if (cloak.isKeyOf(unhex(check))) return cloak;
  throw refuse("key", name, `the ${kind === "key" ? "key" : "passphrase"} is not the one it was cloaked by`);
}

function recordOf(text: string, name: string): CloakRecord {
  const record = parsed(text), { version, kind, cost, salt, check } = record;
  const numbers = [cost?.logN, cost?.r, cost?.p].every(Number.isInteger);
  const form = version === 2 && (kind === "key" || kind === "passphrase") && numbers;
  const texts = form && isHex(salt, KEY_BYTES) && isHex(check, 16);
  if (!texts) throw refuse("form", name, "what it says of its cloak is of another form");
  const problem = costProblem(cost!);
  if (problem) throw refuse("form", name, `its passphrase can't be tried: ${problem}`);
  return record as CloakRecord;
}

function parsed(text: string): Partial<CloakRecord> {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

function refuse(code: string, name: string, why: string) {
  return inputError(`cloak.${code}`, `Can't use the snapshot ${name}: ${why}`, "header");
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function isHex(text: unknown, bytes: number): boolean {
  return typeof text === "string" && text.length === 2 * bytes && /^[0-9a-f]*$/.test(text);
}

function unhex(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length: text.length / 2 }, (_, i) => parseInt(text.slice(2 * i, 2 * i + 2), 16));
}
