/** Bytes that are no file: a `Blob`, an `ArrayBuffer`, what a server sends by ranges. Same code in every runtime. */
import { inputError, PalisadeError, resourceError } from "../core/errors.ts";
import type { ByteSource, Runtime } from "./interface.ts";
import { decodeText, MAX_TEXT_BYTES, tooLarge } from "./utf8.ts";

/** Throws RangeError unless `offset … offset + length` lies inside the source. */
export function checkRange(source: Pick<ByteSource, "name" | "size">, offset: number, length: number): void {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
  if (!whole || offset < 0 || length < 0 || offset + length > source.size) {
    throw new RangeError(`Can't read ${length} bytes at ${offset} of ${source.name}: it has ${source.size} bytes`);
  }
}

/** A `Blob`, such as a file the user picked, as a ByteSource. Nothing is read before it is asked for. */
export function blobSource(blob: Blob, name: string = ("name" in blob) ? String(blob.name) : "blob"): ByteSource {
  const { size } = blob;
  return {
    name,
    size,
    async read(offset, length) {
      checkRange({ name, size }, offset, length);
      try {
        return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      } catch (cause) {
        // What a browser says of a picked file that was changed or removed since.
        throw changed(name, "the browser can't read it any more", cause);
      }
    },
    close: () => Promise.resolve(),
  };
}

/** Bytes in memory as a ByteSource. */
export function bufferSource(bytes: ArrayBuffer | Uint8Array<ArrayBuffer>, name = "buffer"): ByteSource {
  return blobSource(new Blob([bytes]), name);
}

export interface UrlOptions {
  /** Ends what is being read, and all reading after; it rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/**
 * What lies at a URL as a ByteSource, read by HTTP range requests: only what is asked for is fetched. From another
 * origin the server must let pages read it (CORS) and see the header `Content-Range`.
 * @throws PalisadeError input `url.invalid`, `url.status` (the server answers with an error), `url.no-ranges` (it can't
 * send parts, or doesn't say of how much); resources `url.unreachable`. Reading throws those too, and input
 * `file.changed` when the server has other bytes meanwhile; `signal.reason` when aborted.
 */
export async function urlSource(url: string | URL, { signal }: UrlOptions = {}): Promise<ByteSource> {
  const address = addressOf(url), closing = new AbortController();
  const either = signal ? AbortSignal.any([signal, closing.signal]) : closing.signal;
  const first = await request(address, "bytes=0-0", either);
  await first.body?.cancel();
  const version = versionOf(first, address);
  return new UrlSource(address, version, either, closing);
}

/** What tells whether two answers are parts of the same bytes. */
interface Version {
  readonly size: number;
  /** The server's mark for these bytes, where it has one and lets it be seen. */
  readonly tag: string | null;
  readonly modified: string | null;
}

class UrlSource implements ByteSource {
  readonly name: string;
  readonly size: number;
  readonly #version: Version;
  readonly #signal: AbortSignal;
  readonly #closing: AbortController;

  constructor(name: string, version: Version, signal: AbortSignal, closing: AbortController) {
    this.name = name;
    this.size = version.size;
    this.#version = version;
    this.#signal = signal;
    this.#closing = closing;
  }

  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(this, offset, length);
    if (length === 0) return new Uint8Array(0);
    const response = await request(this.name, `bytes=${offset}-${offset + length - 1}`, this.#signal);
    try {
      this.#check(response, offset, length);
    } catch (error) {
      await response.body?.cancel();
      throw error;
    }
    return await bodyOf(response, length, this.name, this.#signal);
  }

  close(): Promise<void> {
    this.#closing.abort(new DOMException(`${this.name} was closed`, "AbortError"));
    return Promise.resolve();
  }

  #check(response: Response, offset: number, length: number): void {
    if (response.status === 416) throw changed(this.name, "it has become shorter");
    const now = versionOf(response, this.name), { size, tag, modified } = this.#version;
    if (now.size !== size) throw changed(this.name, `it had ${size} bytes, now ${now.size}`);
    if (now.tag !== tag || now.modified !== modified) throw changed(this.name, "the server has another version of it");
    const sent = rangeOf(response);
    if (sent?.first !== offset || sent.last !== offset + length - 1) {
      throw noRanges(
        this.name,
        `the server sent other bytes than those asked for (${offset} to ${offset + length - 1})`,
      );
    }
  }
}

function addressOf(url: string | URL): string {
  const base = (globalThis as { location?: { href: string } }).location?.href;
  if (!URL.canParse(url, base)) throw inputError("url.invalid", `Can't open ${url}: it is no URL`, String(url));
  const { protocol, href } = new URL(url, base);
  if (protocol === "http:" || protocol === "https:") return href;
  throw inputError("url.invalid", `Can't open ${href}: want an address that begins with http: or https:`, href);
}

/** Not from the browser's cache, which would hide that the bytes have changed. */
async function request(url: string, range: string, signal: AbortSignal): Promise<Response> {
  try {
    return await fetch(url, { headers: { range }, cache: "no-store", signal });
  } catch (cause) {
    throw failed(url, cause, signal);
  }
}

function failed(url: string, cause: unknown, signal: AbortSignal): unknown {
  if (signal.aborted) return signal.reason;
  const reason = "the server can't be reached, broke off, or doesn't let this page read from it (CORS)";
  return resourceError("url.unreachable", `Can't read ${url}: ${reason}`, url, cause);
}

/** @throws PalisadeError when the answer is no part of something of known size. */
function versionOf(response: Response, url: string): Version {
  const { status, headers } = response;
  const mark = { tag: headers.get("etag"), modified: headers.get("last-modified") };
  const range = rangeOf(response);
  // Nothing of nothing can be sent: that is how servers answer for an empty file.
  if (status === 416 && range?.size === 0) return { size: 0, ...mark };
  if (status === 200) throw noRanges(url, "the server sends the whole file where a part was asked for");
  if (status !== 206) {
    throw inputError(
      "url.status",
      `Can't open ${url}: the server answers ${status} ${response.statusText}`.trim(),
      url,
    );
  }
  if (range?.size !== undefined) return { size: range.size, ...mark };
  const advice = "another origin's server must send Access-Control-Expose-Headers: Content-Range";
  throw noRanges(url, `the size is not to be seen in a Content-Range header; ${advice}`);
}

/** `Content-Range`: RFC 9110, section 14.4. `size` is missing where it says `*`. */
function rangeOf({ headers }: Response): { first?: number; last?: number; size?: number } | undefined {
  const found = /^bytes (?:(\d+)-(\d+)|\*)\/(\d+|\*)$/.exec(headers.get("content-range")?.trim() ?? "");
  if (!found) return undefined;
  const [first, last, size] = found.slice(1).map((text) => /^\d+$/.test(text ?? "") ? Number(text) : undefined);
  return { first, last, size: Number.isSafeInteger(size) ? size : undefined };
}

/** Exactly `length` bytes, straight into place; no more is taken from a server that sends more. */
async function bodyOf(response: Response, length: number, url: string, signal: AbortSignal) {
  const bytes = new Uint8Array(length), reader = response.body!.getReader();
  let done = 0;
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (done + part.value.length > length) throw noRanges(url, `the server sent more than ${length} bytes`);
      bytes.set(part.value, done);
      done += part.value.length;
    }
  } catch (cause) {
    await reader.cancel().catch(() => {});
    throw cause instanceof PalisadeError ? cause : failed(url, cause, signal);
  }
  if (done < length) throw failed(url, new Error(`${done} of ${length} bytes came`), signal);
  return bytes;
}

function noRanges(url: string, problem: string): PalisadeError {
  const advice = "load the whole file instead, and pass its Blob";
  return inputError("url.no-ranges", `Can't read ${url} in parts: ${problem}; ${advice}`, url);
}

function changed(name: string, problem: string, cause?: unknown): PalisadeError {
  return inputError("file.changed", `Can't read ${name}: it was changed meanwhile: ${problem}`, name, cause);
}

/**
 * A runtime in which `files` can be opened by their names, before anything else is looked for: so a browser has the files
 * that a policy names, `headkv(file=mine.json)`. They stay open; whoever made the sources closes them.
 */
export function withFiles(runtime: Runtime, files: Readonly<Record<string, ByteSource>>): Runtime {
  const known = new Map(Object.entries(files));
  return {
    ...runtime,
    async openFile(path) {
      const source = known.get(path);
      if (!source) return await runtime.openFile(path);
      const read: ByteSource["read"] = (offset, length) => source.read(offset, length);
      return { name: path, size: source.size, read, close: () => Promise.resolve() };
    },
    async readText(path, options = {}) {
      const source = known.get(path), { maxBytes = MAX_TEXT_BYTES, signal } = options;
      if (!source) return await runtime.readText(path, options);
      signal?.throwIfAborted();
      if (source.size > maxBytes) throw tooLarge(path, maxBytes);
      return decodeText(await source.read(0, source.size), path);
    },
  };
}
