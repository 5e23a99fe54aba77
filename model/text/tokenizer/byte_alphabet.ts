/**
 * The byte alphabet of GPT-2: every byte has a printable character that stands for it in a vocabulary. Printable
 * Latin-1 bytes stand for themselves, the rest are numbered from U+0100 on (openai/gpt-2 `src/encoder.py`,
 * `bytes_to_unicode`).
 */

/** The character of each byte, `[256]`. */
export const byteCharacters: readonly string[] = characters();

const BYTES: ReadonlyMap<string, number> = new Map(byteCharacters.map((character, byte) => [character, byte]));

function characters(): string[] {
  let next = 0x100;
  const printable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
}

/** The bytes a token of the byte alphabet stands for; undefined when it has a character outside of it. */
export function bytesOfToken(token: string): Uint8Array | undefined {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTES.get(token[i]);
    if (byte === undefined) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}

/** First and last code point of the UTF-8 sequences that begin with a byte; undefined when none does. */
export function codePointsOfLead(lead: number): readonly [number, number] | undefined {
  if (lead < 0x80) return [lead, lead];
  if (lead >= 0xc2 && lead < 0xe0) return [(lead & 0x1f) << 6, ((lead & 0x1f) << 6) | 0x3f];
  if (lead >= 0xe0 && lead < 0xf0) {
    return [Math.max(0x800, (lead & 0x0f) << 12), ((lead & 0x0f) << 12) | 0xfff];
  }
  if (lead >= 0xf0 && lead < 0xf5) {
    return [Math.max(0x10000, (lead & 0x07) << 18), Math.min(0x10ffff, ((lead & 0x07) << 18) | 0x3ffff)];
  }
  return undefined;
}
