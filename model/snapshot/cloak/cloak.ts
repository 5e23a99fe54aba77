/**
 * KV-Cloak: reversible obfuscation of cached keys and values (NDSS 2026, arXiv 2508.09442, section
 * "KV-Cloak"; code SiO-2/kvcloak).
 *
 *     X' = S · Π · (X · M + A)          for each block of 16 rows of a head
 *
 * S mixes the rows of a block, Π shuffles them, M turns each pair of numbers, and A lights one row of the block with a
 * secret beacon far larger than any value. It is obfuscation, not encryption, and by itself it is peeled by who knows a few
 * words of the text (`bench/secrets/adaptive.ts`): so whoever keeps cloaked rows masks them too ({@link Cloak.mask}). A
 * file that leaves the machine is sealed (`../seal/`).
 *
 * What differs from the published code, and why:
 * - Π and the beacon's row are drawn from the key, so the inverse knows them. Nothing is found by a threshold, so an
 *   outlier can't break it, and rows come back in their order: positions may be kept beside them.
 * - Secrets are drawn anew for each file or rest. The published ones stay the same for a whole server, which lets what is
 *   learnt from chosen texts be used on others.
 * - The threshold is taken from the rows themselves, not from a long text beforehand.
 * - What fills the last block is random, where the published constant is known plain text.
 * - M turns the pairs (i, i + headDim/2) of values too; nothing is folded into the weights, because rows are uncloaked
 *   before attention.
 */
import { inputError, option, type PalisadeError, say } from "../../../core/errors.ts";
import type { CopiedRows } from "../../../core/backend/interface.ts";
import { KEY_BYTES, keyMaterial, SCRYPT_COST, type ScryptCost, type Secret } from "../seal/key.ts";
import { BLOCK, type HeadSecrets, SecretSource, type SideSecrets } from "./secrets.ts";

export { BLOCK } from "./secrets.ts";

/** Where heads have their layer: no model has as many. */
const MASKED = 2 ** 32 - 1;

/** The published 2 · 1.42: above any value of a turned row. */
const THRESHOLD = 2 * 1.42;

/** One head's keys and values, cloaked: rows are filled up to a multiple of 16. */
export interface CloakedHead {
  /** Rows that were cloaked. */
  readonly rows: number;
  /** `[blocks · 16, headDim]` each. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** Largest magnitude of a key and of a value; 1 where all are 0. */
  readonly largest: readonly [keys: number, values: number];
}

/** Cloaks and uncloaks the heads of one file or context. Made by {@link Cloak.of}. */
export class Cloak {
  readonly #secrets: SecretSource;

  private constructor(secrets: SecretSource) {
    this.#secrets = secrets;
  }

  /**
   * `salt`: 32 bytes, never the same twice for a secret ({@link newSalt}). A passphrase goes through scrypt first.
   * @throws RangeError for a salt of another length; PalisadeError resources `seal.no-crypto`.
   */
  static async of(secret: Secret, salt: Uint8Array<ArrayBuffer>, cost: ScryptCost = SCRYPT_COST): Promise<Cloak> {
    if (salt.length !== KEY_BYTES) throw new RangeError(`A salt of ${salt.length} bytes: want ${KEY_BYTES}`);
    return new Cloak(await SecretSource.of(await keyMaterial(secret, salt, cost), salt));
  }

  /** 16 bytes that tell whether a key is the right one ({@link isKeyOf}) and say nothing about it. */
  get check(): Uint8Array<ArrayBuffer> {
    return this.#secrets.check.slice();
  }

  /** Whether this cloak's key and salt are those that `check` was made by. */
  isKeyOf(check: Uint8Array): boolean {
    const own = this.#secrets.check;
    return check.length === own.length && own.every((byte, i) => byte === check[i]);
  }

  /**
   * Keys and values `[rows, headDim]` each, headDim even; they stay as they are.
   * @throws PalisadeError input `cloak.type` for packed rows, `cloak.range` for what is not finite, or so large that its beacon is not.
   */
  async cover(layer: number, kvHead: number, copied: CopiedRows, headDim: number): Promise<CloakedHead> {
    const { keys, values, packed } = copied;
    if (packed) throw cannotCloak();
    const rows = checkedRows(keys, values, headDim);
    const largest = [largestOf(keys), largestOf(values)] as const;
    const secrets = await this.#secrets.head(layer, kvHead, rows, headDim);
    return {
      rows,
      keys: cover(keys, headDim, secrets, secrets.keys, THRESHOLD * largest[0]),
      values: cover(values, headDim, secrets, secrets.values, THRESHOLD * largest[1]),
      largest,
    };
  }

  /**
   * Hides what is not rows, or shows it again: each bit is turned by a stream of its own for each `purpose`, from 0 on.
   * Never the same purpose for two contents.
   */
  async mask(purpose: number, bytes: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
    return await this.#secrets.masked(MASKED, purpose, bytes);
  }

  /** What was cloaked, to within some 10⁻⁶ of its largest magnitude. @throws RangeError when sizes don't fit. */
  async uncover(layer: number, kvHead: number, cloaked: CloakedHead, headDim: number): Promise<CopiedRows> {
    const { rows, keys, values, largest } = cloaked;
    const length = Math.ceil(rows / BLOCK) * BLOCK * headDim;
    if (keys.length !== length || values.length !== length) {
      throw new RangeError(
        `Cannot uncloak ${keys.length} and ${values.length} numbers: want ${length} for ${rows} rows`,
      );
    }
    const secrets = await this.#secrets.head(layer, kvHead, rows, headDim);
    return {
      keys: uncover(keys, rows, headDim, secrets, secrets.keys, THRESHOLD * largest[0]),
      values: uncover(values, rows, headDim, secrets, secrets.values, THRESHOLD * largest[1]),
    };
  }
}

/** A salt for {@link Cloak.of}. */
export function newSalt(): Uint8Array<ArrayBuffer> {
  return crypto.getRandomValues(new Uint8Array(32));
}

function checkedRows(keys: Float32Array, values: Float32Array, headDim: number): number {
  const rows = keys.length / headDim;
  if (headDim % 2 === 0 && Number.isInteger(rows) && values.length === keys.length) return rows;
  throw new RangeError(`Cannot cloak ${keys.length} keys and ${values.length} values: want rows of ${headDim}, even`);
}

function largestOf(numbers: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < numbers.length; i++) {
    const size = Math.abs(numbers[i]);
    // NaN compares as not smaller, too.
    if (!(size <= largest)) largest = size;
    if (!(size < 1e36)) throw inputError("cloak.range", "Can't cloak a key or value that is not below 10³⁶", "cloak");
  }
  return largest || 1;
}

/** `threshold`: the paper's T of this side. */
function cover(
  rows: Float32Array,
  headDim: number,
  secrets: HeadSecrets,
  side: SideSecrets,
  threshold: number,
): Float32Array {
  const blocks = secrets.lit.length, cloaked = new Float32Array(blocks * BLOCK * headDim);
  const block = new Float64Array(BLOCK * headDim), turned = new Float64Array(headDim), half = headDim / 2;
  for (let b = 0; b < blocks; b++) {
    for (let place = 0; place < BLOCK; place++) {
      const row = secrets.order[b * BLOCK + place], from = (b * BLOCK + row) * headDim;
      // X, filled up
      if (from < rows.length) { for (let i = 0; i < headDim; i++) turned[i] = rows[from + i]; }
      else for (let i = 0; i < headDim; i++) turned[i] = threshold * secrets.filling[row * headDim + i];
      // Π · (X · M + A)
      const shine = secrets.lit[b] === row ? threshold : 0, to = place * headDim;
      for (let i = 0; i < half; i++) {
        const [x, y] = [turned[i], turned[half + i]];
        block[to + i] = x * side.cos[i] - y * side.sin[i] + shine * side.beacon[i];
        block[to + half + i] = y * side.cos[i] + x * side.sin[i] + shine * side.beacon[half + i];
      }
    }
    mixRows(side.mix, block, headDim, cloaked.subarray(b * BLOCK * headDim));
  }
  return cloaked;
}

/** S · Y into `out`. */
function mixRows(mix: Float64Array, block: Float64Array, headDim: number, out: Float32Array): void {
  const sums = new Float64Array(headDim);
  for (let i = 0; i < BLOCK; i++) {
    sums.fill(0);
    for (let j = 0; j < BLOCK; j++) {
      const factor = mix[i * BLOCK + j], from = j * headDim;
      for (let k = 0; k < headDim; k++) sums[k] += factor * block[from + k];
    }
    out.set(sums, i * headDim);
  }
}

function uncover(
  cloaked: Float32Array,
  rows: number,
  headDim: number,
  secrets: HeadSecrets,
  side: SideSecrets,
  threshold: number,
): Float32Array {
  const plain = new Float32Array(rows * headDim), row = new Float64Array(headDim), half = headDim / 2;
  for (let b = 0; b < secrets.lit.length; b++) {
    for (let place = 0; place < BLOCK; place++) {
      const at = secrets.order[b * BLOCK + place], to = (b * BLOCK + at) * headDim;
      if (to >= plain.length) continue;
      // Sᵀ · X', one row
      row.fill(0);
      for (let j = 0; j < BLOCK; j++) {
        const factor = side.mix[j * BLOCK + place], from = (b * BLOCK + j) * headDim;
        for (let k = 0; k < headDim; k++) row[k] += factor * cloaked[from + k];
      }
      // (Y − A) · Mᵀ
      const shine = secrets.lit[b] === at ? threshold : 0;
      for (let i = 0; i < half; i++) {
        const x = row[i] - shine * side.beacon[i], y = row[half + i] - shine * side.beacon[half + i];
        plain[to + i] = x * side.cos[i] + y * side.sin[i];
        plain[to + half + i] = y * side.cos[i] - x * side.sin[i];
      }
    }
  }
  return plain;
}

/** Packed rows are stored as they are: through floats, which a cloak turns, they wouldn't come back. */
function cannotCloak(): PalisadeError {
  const message = say`Cannot cloak rows of type int4: take ${option("cacheType")} int8, or seal the file instead`;
  return inputError("cloak.type", message, option("cacheType"));
}
