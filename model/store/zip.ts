/**
 * Reading one entry of a zip file in pieces (PKWARE APPNOTE 6.3.10, sections 4.3.7 to 4.3.16): found through the
 * central directory, stored or deflated, never whole in memory. No zip64: a wheel of one small model needs none.
 */
import { Inflate } from "fflate";
import type { ByteSource } from "../../runtime/interface.ts";

/** Compressed bytes read at a time; deflate makes at most 1032 bytes of one, so a piece stays under 66 MiB. */
const CHUNK = 64 * 1024;

/** End record, 22 bytes, and the longest comment behind it. */
const END_BYTES = 22;
const END_SEARCH = END_BYTES + 0xffff;

/** Largest central directory read. A wheel has some dozen entries of about 100 bytes. */
const MAX_DIRECTORY = 4 * 1024 * 1024;

const END_SIGNATURE = 0x06054b50;
const ENTRY_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const STORED = 0;
const DEFLATED = 8;

interface ZipEntry {
  readonly method: number;
  readonly compressed: number;
  /** Of the local header, from the start of the file. */
  readonly offset: number;
}

/**
 * The bytes of entry `name`, in pieces. Throws Error when the file is no zip, is damaged, is encrypted, or has no
 * such entry.
 */
export async function* zipEntry(source: ByteSource, name: string): AsyncGenerator<Uint8Array> {
  const entry = await findEntry(source, name);
  const start = await dataStart(source, entry);
  if (start + entry.compressed > source.size) throw damaged(source, `${name} runs past the end`);
  const chunks = rawChunks(source, start, entry.compressed);
  if (entry.method === STORED) yield* chunks;
  else if (entry.method === DEFLATED) yield* inflated(chunks);
  else throw new Error(`${source.name} packs ${name} by method ${entry.method}, stored or deflated is wanted`);
}

function damaged(source: ByteSource, what: string): Error {
  return new Error(`${source.name} is no zip file that can be read: ${what}`);
}

async function findEntry(source: ByteSource, name: string): Promise<ZipEntry> {
  const tailLength = Math.min(END_SEARCH, source.size);
  const tail = view(await source.read(source.size - tailLength, tailLength));
  const end = findEnd(tail);
  if (end < 0) throw damaged(source, "it has no end record");
  const count = tail.getUint16(end + 10, true);
  const length = tail.getUint32(end + 12, true);
  const offset = tail.getUint32(end + 16, true);
  if (offset + length > source.size || length > MAX_DIRECTORY) throw damaged(source, "its directory does not fit");
  const bytes = await source.read(offset, length);
  const found = entryOf(bytes, count, name);
  if (!found) throw new Error(`${source.name} holds no ${name}`);
  return found;
}

/** Position of the end record, searched backwards over the comment; −1 when there is none. */
function findEnd(tail: DataView): number {
  for (let at = tail.byteLength - END_BYTES; at >= 0; at--) {
    if (tail.getUint32(at, true) === END_SIGNATURE) return at;
  }
  return -1;
}

function entryOf(directory: Uint8Array<ArrayBuffer>, count: number, name: string): ZipEntry | undefined {
  const fields = view(directory);
  let at = 0;
  for (let i = 0; i < count && at + 46 <= directory.length; i++) {
    if (fields.getUint32(at, true) !== ENTRY_SIGNATURE) return undefined;
    const nameLength = fields.getUint16(at + 28, true);
    const entryName = new TextDecoder().decode(directory.subarray(at + 46, at + 46 + nameLength));
    const encrypted = (fields.getUint16(at + 8, true) & 1) === 1;
    if (entryName === name && !encrypted) {
      return {
        method: fields.getUint16(at + 10, true),
        compressed: fields.getUint32(at + 20, true),
        offset: fields.getUint32(at + 42, true),
      };
    }
    at += 46 + nameLength + fields.getUint16(at + 30, true) + fields.getUint16(at + 32, true);
  }
  return undefined;
}

/** The local header repeats the name and has extra fields of its own length; the data comes behind them. */
async function dataStart(source: ByteSource, entry: ZipEntry): Promise<number> {
  if (entry.offset + 30 > source.size) throw damaged(source, "an entry lies past the end");
  const header = view(await source.read(entry.offset, 30));
  if (header.getUint32(0, true) !== LOCAL_SIGNATURE) throw damaged(source, "an entry has no header");
  return entry.offset + 30 + header.getUint16(26, true) + header.getUint16(28, true);
}

async function* rawChunks(source: ByteSource, start: number, length: number): AsyncGenerator<Uint8Array> {
  for (let done = 0; done < length; done += CHUNK) {
    yield await source.read(start + done, Math.min(CHUNK, length - done));
  }
}

async function* inflated(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const ready: Uint8Array[] = [];
  const inflate = new Inflate((piece) => void ready.push(piece));
  for await (const chunk of chunks) {
    inflate.push(chunk);
    yield* ready.splice(0);
  }
  inflate.push(new Uint8Array(0), true);
  yield* ready;
}

function view(bytes: Uint8Array<ArrayBuffer>): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
