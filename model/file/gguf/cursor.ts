import { inputError } from "../../../core/errors.ts";
import type { PalisadeError } from "../../../core/errors.ts";
import type { ByteSource } from "../../../runtime/interface.ts";
import type { Notice } from "../notice.ts";

/**
 * What header, metadata and tensor table together may take: eight times the largest vocabularies we know of, and little
 * enough to be held in memory.
 */
export const MAX_HEADER_BYTES = 128 * 2 ** 20;

const DEFAULT_WINDOW = 2 ** 20;
const MAX_WINDOW = 16 * 2 ** 20;

/** `ignoreBOM` keeps a leading U+FEFF: it can be part of a token. */
const STRICT_UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const LOOSE_UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** A name from a file as it may appear in a message: escaped, and cut at 80 characters. */
export function quoted(name: string): string {
  return JSON.stringify(name.length > 80 ? name.slice(0, 80) + "…" : name);
}

/**
 * Reads little-endian fields one after the other through a window of the file. Nothing is read, and no buffer made,
 * before the length asked for is known to be in the file. Each method takes the field's path for the error.
 * Errors: `gguf.truncated`, `gguf.limit`, `gguf.utf8`.
 */
export class Cursor {
  readonly #source: ByteSource;
  readonly #windowBytes: number;
  #window = new Uint8Array(0);
  #view = new DataView(this.#window.buffer);
  /** Offset in the file of the window's first byte. */
  #start = 0;
  /** Next byte, from the window's first. */
  #at = 0;

  /** `windowBytes`: bytes per read of the source, 1 to 16 MiB, default 1 MiB. */
  constructor(source: ByteSource, windowBytes: number = DEFAULT_WINDOW) {
    if (!Number.isInteger(windowBytes) || windowBytes < 1 || windowBytes > MAX_WINDOW) {
      throw new RangeError(`windowBytes must be an integer from 1 to ${MAX_WINDOW}, got ${windowBytes}`);
    }
    this.#source = source;
    this.#windowBytes = windowBytes;
  }

  /** Offset in the file of the next byte. */
  get position(): number {
    return this.#start + this.#at;
  }

  get fileSize(): number {
    return this.#source.size;
  }

  /** Bytes from here to the end of the file. */
  get remaining(): number {
    return this.#source.size - this.position;
  }

  /** A refusal of this file. */
  refuse(code: string, where: string, message: string): PalisadeError {
    return inputError(code, `${this.#source.name}: ${where}: ${message}`, where);
  }

  async u8(where: string): Promise<number> {
    const at = await this.#take(1, where);
    return this.#view.getUint8(at);
  }

  async u32(where: string): Promise<number> {
    const at = await this.#take(4, where);
    return this.#view.getUint32(at, true);
  }

  async u64(where: string): Promise<bigint> {
    const at = await this.#take(8, where);
    return this.#view.getBigUint64(at, true);
  }

  /** The next `length` bytes in a buffer of their own, read window by window. */
  async bytes(length: number, where: string): Promise<Uint8Array<ArrayBuffer>> {
    this.#check(length, where);
    const out = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const step = Math.min(length - done, this.#windowBytes);
      const at = await this.#take(step, where);
      out.set(this.#window.subarray(at, at + step), done);
      done += step;
    }
    return out;
  }

  /** A UTF-8 text of `length` bytes. What is not UTF-8 is refused, or read as U+FFFD and told to `odd`. */
  async text(length: number, where: string, odd?: (notice: Notice) => void): Promise<string> {
    const at = await this.#take(length, where);
    const bytes = this.#window.subarray(at, at + length);
    try {
      return STRICT_UTF8.decode(bytes);
    } catch {
      if (odd) {
        odd({
          where,
          text: `bytes ${this.position - length} to ${this.position} are not UTF-8; they are read as U+FFFD`,
        });
        return LOOSE_UTF8.decode(bytes);
      }
      throw this.refuse("gguf.utf8", where, `bytes ${this.position - length} to ${this.position} are not UTF-8`);
    }
  }

  /** The next text, its length before it, where both are in the window and UTF-8; else undefined, and nothing is read. */
  textHere(): string | undefined {
    const from = this.#at + 8;
    if (from > this.#window.length) return undefined;
    const length = this.#view.getUint32(this.#at, true), high = this.#view.getUint32(this.#at + 4, true);
    if (high !== 0 || from + length > this.#window.length) return undefined;
    try {
      const text = STRICT_UTF8.decode(this.#window.subarray(from, from + length));
      this.#at = from + length;
      return text;
    } catch {
      return undefined;
    }
  }

  /** Makes sure `length` bytes are in the window, moves past them and returns their offset in the window. */
  async #take(length: number, where: string): Promise<number> {
    if (this.#at + length > this.#window.length) await this.#refill(length, where);
    const at = this.#at;
    this.#at += length;
    return at;
  }

  /** Refuses `length` more bytes when the file, or what we are ready to read of it, has fewer. */
  #check(length: number, where: string): void {
    const position = this.position;
    if (length > this.remaining) {
      throw this.refuse(
        "gguf.truncated",
        where,
        `the file ends at byte ${this.#source.size}, inside the ${length} bytes that start at ${position}`,
      );
    }
    if (position + length > MAX_HEADER_BYTES) {
      throw this.refuse(
        "gguf.limit",
        where,
        `metadata and tensor table take more than ${MAX_HEADER_BYTES} bytes (byte ${position} and on)`,
      );
    }
  }

  async #refill(length: number, where: string): Promise<void> {
    this.#check(length, where);
    const position = this.position;
    this.#window = await this.#source.read(position, Math.min(Math.max(length, this.#windowBytes), this.remaining));
    this.#view = new DataView(this.#window.buffer, this.#window.byteOffset, this.#window.byteLength);
    this.#start = position;
    this.#at = 0;
  }
}
