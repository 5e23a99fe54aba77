/**
 * The secrets of one cloaked file or context, drawn from a key and a salt that is never used twice: so what an attacker
 * learns of one says nothing about the next. Nothing but the key needs to be kept to draw them again.
 */
import { hkdf, subtle } from "../seal/key.ts";

/** Rows that are mixed together: the paper's b. */
export const BLOCK = 16;

/** Secrets of the keys, or of the values, of one head. */
export interface SideSecrets {
  /** Orthogonal, `[BLOCK, BLOCK]`: the paper's S. */
  readonly mix: Float64Array;
  /** Cosine and sine of each plane's angle, `[headDim / 2]` each: the paper's M. */
  readonly cos: Float64Array;
  readonly sin: Float64Array;
  /** The beacon's row in units of the side's threshold, 3 to 4, `[headDim]`: the paper's a. */
  readonly beacon: Float64Array;
}

/** Secrets of one head. */
export interface HeadSecrets {
  readonly keys: SideSecrets;
  readonly values: SideSecrets;
  /** For each row of a block the row that comes to its place, `[blocks, BLOCK]`: the paper's Π, new in every block. */
  readonly order: Uint8Array;
  /** The row of each block that the beacon is put on, `[blocks]`. */
  readonly lit: Uint8Array;
  /** What fills the last block, in units of the threshold, −1/4 to 1/4: `[BLOCK, headDim]`. */
  readonly filling: Float64Array;
}

/** Draws the secrets of each head. Made by {@link SecretSource.of}. */
export class SecretSource {
  readonly #key: CryptoKey;
  /** Tells whether a key is the right one: 16 bytes that say nothing about it. */
  readonly check: Uint8Array<ArrayBuffer>;

  private constructor(key: CryptoKey, check: Uint8Array<ArrayBuffer>) {
    this.#key = key;
    this.check = check;
  }

  /** From key material for HKDF, which the salt is mixed into. */
  static async of(material: CryptoKey, salt: Uint8Array<ArrayBuffer>): Promise<SecretSource> {
    const use = { name: "AES-CTR", length: 256 };
    const stream = await subtle().deriveKey(hkdf(salt, "palisade cloak 1"), material, use, false, ["encrypt"]);
    const check = await subtle().deriveBits(hkdf(salt, "palisade cloak 1 check"), material, 128);
    return new SecretSource(stream, new Uint8Array(check));
  }

  /** The secrets of one head with `rows` rows of `headDim` numbers each. */
  async head(layer: number, kvHead: number, rows: number, headDim: number): Promise<HeadSecrets> {
    const blocks = Math.ceil(rows / BLOCK), side = BLOCK * BLOCK + headDim / 2 + headDim;
    const numbers = 2 * side + BLOCK * headDim + blocks * BLOCK;
    const draw = new Draw((await this.stream(layer, kvHead, 4 * numbers)).buffer);
    const keys = sideSecrets(draw, headDim), values = sideSecrets(draw, headDim);
    const filling = Float64Array.from({ length: BLOCK * headDim }, () => draw.uniform() / 2 - 0.25);
    const order = new Uint8Array(blocks * BLOCK), lit = new Uint8Array(blocks);
    for (let i = 0; i < blocks; i++) {
      shuffle(draw, order.subarray(i * BLOCK, (i + 1) * BLOCK));
      lit[i] = Math.floor(draw.uniform() * BLOCK);
    }
    return { keys, values, order, lit, filling };
  }

  /** `bytes` random bytes for one place. */
  stream(layer: number, kvHead: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    return this.masked(layer, kvHead, new Uint8Array(bytes));
  }

  /** Bytes under a place's stream, in an array of their own: AES in counter mode, layer and head are its nonce. */
  async masked(layer: number, kvHead: number, bytes: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
    const counter = new Uint8Array(16), view = new DataView(counter.buffer);
    view.setUint32(0, layer);
    view.setUint32(4, kvHead);
    const how = { name: "AES-CTR", counter, length: 64 };
    return new Uint8Array(await subtle().encrypt(how, this.#key, bytes as Uint8Array<ArrayBuffer>));
  }
}

/** Takes a stream of random bytes four at a time. */
class Draw {
  readonly #words: DataView;
  #at = 0;

  constructor(bytes: ArrayBuffer) {
    this.#words = new DataView(bytes);
  }

  /** From 0 up to 1, not 1. Little-endian, so that all machines draw the same. */
  uniform(): number {
    const word = this.#words.getUint32(this.#at, true);
    this.#at += 4;
    return word / 2 ** 32;
  }
}

function sideSecrets(draw: Draw, headDim: number): SideSecrets {
  const mix = orthogonal(draw);
  const angles = Float64Array.from({ length: headDim / 2 }, () => 2 * Math.PI * draw.uniform());
  const beacon = Float64Array.from({ length: headDim }, () => 3 + draw.uniform());
  return { mix, cos: angles.map(Math.cos), sin: angles.map(Math.sin), beacon };
}

/** A random orthogonal matrix, every one as likely: Gaussian rows, each made orthogonal to those before (twice, for its bits). */
function orthogonal(draw: Draw): Float64Array {
  const matrix = gaussians(draw, BLOCK * BLOCK);
  for (let i = 0; i < BLOCK; i++) {
    const row = matrix.subarray(i * BLOCK, (i + 1) * BLOCK);
    for (const j of [...Array(i).keys(), ...Array(i).keys()]) {
      const other = matrix.subarray(j * BLOCK, (j + 1) * BLOCK), along = dot(row, other);
      for (let k = 0; k < BLOCK; k++) row[k] -= along * other[k];
    }
    const length = Math.sqrt(dot(row, row));
    for (let k = 0; k < BLOCK; k++) row[k] /= length;
  }
  return matrix;
}

/** Box and Muller; `count` is even. */
function gaussians(draw: Draw, count: number): Float64Array {
  const numbers = new Float64Array(count);
  for (let i = 0; i < count; i += 2) {
    // 1 − u is never 0, whose logarithm there is none of.
    const radius = Math.sqrt(-2 * Math.log(1 - draw.uniform())), angle = 2 * Math.PI * draw.uniform();
    numbers[i] = radius * Math.cos(angle);
    numbers[i + 1] = radius * Math.sin(angle);
  }
  return numbers;
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Fisher and Yates, with the `order.length − 1` numbers it needs; 2⁻²⁸ off from fair. */
function shuffle(draw: Draw, order: Uint8Array): void {
  for (let i = 0; i < order.length; i++) order[i] = i;
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(draw.uniform() * (i + 1)), other = order[j];
    order[j] = order[i];
    order[i] = other;
  }
}
