/** Strict UTF-8. */
import { inputError, type PalisadeError } from "../core/errors.ts";

/** Largest text read by default: 64 MiB, some 16 million tokens, beyond any context. */
export const MAX_TEXT_BYTES = 64 * 1024 * 1024;

/** The refusal of a longer text; `shown` is what people call the file at `path`. */
export function tooLarge(path: string, maxBytes: number, shown = path): PalisadeError {
  return inputError("text.too-large", `Can't read ${shown}: it is longer than the ${maxBytes} bytes allowed`, path);
}

/**
 * Decodes text: {@link decodeUtf8}, and no NUL characters, which text has none of, but UTF-16 and binary files do.
 * Throws PalisadeError input `text.binary` with the byte offset of the first NUL, and `text.not-utf8`.
 */
export function decodeText(bytes: Uint8Array, where: string): string {
  const offset = bytes.indexOf(0);
  if (offset < 0) return decodeUtf8(bytes, where);
  const advice = "it looks like UTF-16 or a binary file; convert text to UTF-8 first";
  throw inputError("text.binary", `Can't read ${where} as text: a NUL character at offset ${offset}; ${advice}`, where);
}

/**
 * Decodes UTF-8 without replacing anything. A leading byte order mark is dropped.
 * Throws PalisadeError input `text.not-utf8` with the byte offset of the first invalid sequence.
 */
function decodeUtf8(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    const offset = invalidUtf8Offset(bytes);
    throw inputError(
      "text.not-utf8",
      `Can't read ${where} as UTF-8: invalid bytes at offset ${offset}; convert the text to UTF-8 first`,
      where,
      cause,
    );
  }
}

/** Offset of the first sequence that is not well-formed UTF-8 (Unicode 15, table 3-7), −1 when all is well. */
export function invalidUtf8Offset(bytes: Uint8Array): number {
  let at = 0;
  while (at < bytes.length) {
    const length = sequenceLength(bytes, at);
    if (length === 0) return at;
    at += length;
  }
  return -1;
}

/** Bytes of the well-formed sequence at `at`, 0 when there is none. */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const lead = bytes[at];
  if (lead < 0x80) return 1;
  const length = lead >= 0xc2 && lead <= 0xdf ? 2 : (lead & 0xf0) === 0xe0 ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
  if (length === 0 || at + length > bytes.length) return 0;
  const second = bytes[at + 1];
  // Shortest form, no surrogates, nothing above U+10FFFF.
  const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
  const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
  if (second < low || second > high) return 0;
  for (let i = 2; i < length; i++) if ((bytes[at + i] & 0xc0) !== 0x80) return 0;
  return length;
}
