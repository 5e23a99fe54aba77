/**
 * NumPy's files of many arrays: zip files of `.npy` files, stored or deflated (PKWARE APPNOTE 6.3.10, zip64 too). Read in
 * ranges: the directory at once, an array when it is asked for, a piece at a time.
 *
 * Stricter than other readers of zip files: the directory ends where its end record begins, entries lie apart from each
 * other, say the same in both of their headers, and have the bytes and the checksum that they promise.
 */
import { concatenate } from "../../core/concatenate.ts";
import { Inflate } from "fflate";
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { ByteSource } from "../../runtime/interface.ts";
import { Crc32 } from "./crc32.ts";
import { decodeFloats, FLOAT_BYTES } from "./floats.ts";
import { inCOrder, type NpyHeader, readNpyHeader } from "./npy.ts";
import { type DumpContainer, type DumpTensor, floatTypeOf, placedTensor } from "./tensors.ts";

export const ZIP_MAGIC: readonly number[] = [0x50, 0x4b];
const END = 0x06054b50, END64 = 0x06064b50, LOCATOR64 = 0x07064b50, ENTRY = 0x02014b50, LOCAL = 0x04034b50;
const END_BYTES = 22, END64_BYTES = 56, LOCATOR_BYTES = 20, ENTRY_BYTES = 46, LOCAL_BYTES = 30;
const MAX_DIRECTORY = 4 * 2 ** 20;
/** The last version of the format, times ten: what asks for more is damaged. */
const NEWEST = 63;
const STORED = 0, DEFLATED = 8;
/** Flags that change nothing of what is read: how well it was packed, sizes behind the data, names in UTF-8. */
const HARMLESS_FLAGS = 0x0006 | 0x0008 | 0x0800;
/** Deflate makes at most this many bytes of one. */
const MOST_EXPANSION = 1032;
/** Packed bytes read at a time. */
const CHUNK = 64 * 1024;
/** Array headers are shorter. */
const HEADER_ROOM = 12 * 1024;

interface ZipEntry {
  /** Without `.npy`. */
  readonly name: string;
  readonly fullName: Uint8Array;
  readonly method: number;
  readonly crc: number;
  readonly packed: number;
  readonly size: number;
  /** Of the local header. */
  readonly offset: number;
}

/**
 * Opens a file; it takes over the source.
 * @throws PalisadeError `npz.*`; `npy.*` when an array is asked for.
 */
export async function openNpz(source: ByteSource): Promise<DumpContainer> {
  await refusePickle(source);
  const entries = await readDirectory(source);
  const byName = new Map(entries.map((entry) => [entry.name, entry]));
  return {
    name: source.name,
    names: [...byName.keys()],
    tensor: (name) => entryTensor(source, byName.get(name)!),
    close: () => source.close(),
  };
}

function refuse(code: string, file: string, reason: string): PalisadeError {
  return inputError(`npz.${code}`, `${file}: ${reason}`, file);
}

/** PyTorch's own files are zip files too, of a pickle that only Python may run. */
async function refusePickle(source: ByteSource): Promise<void> {
  const head = await source.read(0, Math.min(source.size, 30 + 512)), view = new DataView(head.buffer, head.byteOffset);
  if (head.length < 30) return;
  const name = new TextDecoder("latin1").decode(head.subarray(30, 30 + view.getUint16(26, true)));
  if (!name.endsWith("/data.pkl")) return;
  const wanted = "want tensors written by safetensors.torch.save_file or numpy.savez";
  throw refuse("pickle", source.name, `torch.save wrote it, as a pickle: ${wanted}`);
}

async function fields(source: ByteSource, offset: number, length: number): Promise<DataView> {
  if (offset < 0 || offset + length > source.size) throw refuse("directory", source.name, "its directory lies outside");
  const bytes = await source.read(offset, length);
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A number of eight bytes; NaN where it is beyond what can be told. */
function long(view: DataView, at: number): number {
  const value = view.getBigUint64(at, true);
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : NaN;
}

/** Where the directory is: the last thing in the file but its end records, which have no comment. */
async function findDirectory(source: ByteSource): Promise<{ count: number; length: number; offset: number }> {
  const at = source.size - END_BYTES;
  const end = await fields(source, at, END_BYTES);
  if (end.getUint32(0, true) !== END) throw refuse("directory", source.name, "it doesn't end as a zip file does");
  const disks = end.getUint32(4, true), comment = end.getUint16(20, true);
  let [count, onDisk] = [end.getUint16(10, true), end.getUint16(8, true)];
  let [length, offset] = [end.getUint32(12, true), end.getUint32(16, true)], last = at;
  if (count === 0xffff || length === 0xffffffff || offset === 0xffffffff) {
    const locator = await fields(source, at - LOCATOR_BYTES, LOCATOR_BYTES);
    last = long(locator, 8);
    const whole = locator.getUint32(0, true) === LOCATOR64 && last === at - LOCATOR_BYTES - END64_BYTES;
    const end64 = whole ? await fields(source, last, END64_BYTES) : undefined;
    if (end64?.getUint32(0, true) !== END64 || end64.getUint32(16, true) !== 0 || end64.getUint32(20, true) !== 0) {
      throw refuse("directory", source.name, "its zip64 record is damaged");
    }
    [onDisk, count, length, offset] = [long(end64, 24), long(end64, 32), long(end64, 40), long(end64, 48)];
  }
  if (disks !== 0 || comment !== 0 || onDisk !== count || !(offset + length === last)) {
    throw refuse("directory", source.name, "its directory is not where its end says");
  }
  if (length > MAX_DIRECTORY) {
    throw refuse("directory", source.name, `a directory of ${length} bytes: want at most ${MAX_DIRECTORY}`);
  }
  return { count, length, offset };
}

async function readDirectory(source: ByteSource): Promise<ZipEntry[]> {
  const { count, length, offset } = await findDirectory(source);
  const view = await fields(source, offset, length), entries: ZipEntry[] = [], names = new Set<string>();
  let at = 0;
  while (at < length) {
    const entry = entryAt(view, at, source.name);
    if (names.has(entry.name)) throw refuse("names", source.name, `${entry.name} comes twice`);
    names.add(entry.name);
    entries.push(entry);
    at += ENTRY_BYTES + view.getUint16(at + 28, true) + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  if (entries.length !== count || at !== length) {
    throw refuse("directory", source.name, `its directory has not ${count} entries`);
  }
  checkApart(entries, offset, source.name);
  return entries;
}

function entryAt(view: DataView, at: number, file: string): ZipEntry {
  const room = view.byteLength - at;
  if (room < ENTRY_BYTES || view.getUint32(at, true) !== ENTRY) {
    throw refuse("directory", file, "its directory is damaged");
  }
  const nameBytes = view.getUint16(at + 28, true), extra = view.getUint16(at + 30, true);
  if (ENTRY_BYTES + nameBytes + extra + view.getUint16(at + 32, true) > room) {
    throw refuse("directory", file, "its directory is cut off");
  }
  const fullName = new Uint8Array(view.buffer, view.byteOffset + at + ENTRY_BYTES, nameBytes);
  const text = /^([\x20-\x7e]+)\.npy$/.exec(new TextDecoder("latin1").decode(fullName))?.[1];
  if (text === undefined) {
    throw refuse("names", file, "an entry is no array: want names of plain letters that end in .npy");
  }
  const version = view.getUint16(at + 6, true);
  if (version > NEWEST) throw refuse("packing", file, `${text} asks for version ${version / 10} of zip files`);
  if (view.getUint16(at + 8, true) & ~HARMLESS_FLAGS) throw refuse("packing", file, `${text} is encrypted or patched`);
  const method = view.getUint16(at + 10, true);
  if (method !== STORED && method !== DEFLATED) {
    throw refuse("packing", file, `${text} is packed by method ${method}: want stored or deflated`);
  }
  const long = longSizes(view, at, at + ENTRY_BYTES + nameBytes, extra);
  if (!long) throw refuse("directory", file, `the sizes of ${text} are damaged`);
  const { size, packed, offset } = long;
  if (method === STORED ? size !== packed : size > MOST_EXPANSION * packed + MOST_EXPANSION) {
    throw refuse("size", file, `${text} can't have ${size} bytes of ${packed}`);
  }
  return { name: text, fullName, method, crc: view.getUint32(at + 16, true), size, packed, offset };
}

/** Sizes and offset, from the zip64 field where they are too large for the entry; undefined where that lacks them. */
function longSizes(view: DataView, at: number, extraAt: number, extraBytes: number) {
  const short = [view.getUint32(at + 24, true), view.getUint32(at + 20, true), view.getUint32(at + 42, true)];
  let wide = 0, end = 0;
  for (let i = extraAt; i < extraAt + extraBytes; i = end) {
    if (i + 4 > extraAt + extraBytes) return undefined;
    end = i + 4 + view.getUint16(i + 2, true);
    if (end > extraAt + extraBytes) return undefined;
    if (view.getUint16(i, true) !== 1) continue;
    if (wide !== 0) return undefined;
    wide = i + 4;
    for (const [n, value] of short.entries()) {
      if (value !== 0xffffffff) continue;
      if (wide + 8 > end) return undefined;
      short[n] = long(view, wide);
      wide += 8;
    }
    if (wide !== end) return undefined;
  }
  const [size, packed, offset] = short;
  return short.every((each) => Number.isSafeInteger(each)) && !(wide === 0 && short.includes(0xffffffff))
    ? { size, packed, offset }
    : undefined;
}

/** No two entries share bytes, and none reaches into the directory. */
function checkApart(entries: readonly ZipEntry[], directory: number, file: string): void {
  let at = 0;
  for (const { name, offset, packed, fullName } of [...entries].sort((a, b) => a.offset - b.offset)) {
    if (offset < at) throw refuse("overlap", file, `${name} begins inside another entry`);
    at = offset + LOCAL_BYTES + fullName.length + packed;
    if (at > directory) throw refuse("overlap", file, `${name} reaches into the directory`);
  }
}

/** Where an entry's bytes begin; its own header must say what the directory says. */
async function dataOf(source: ByteSource, entry: ZipEntry): Promise<number> {
  const view = await fields(source, entry.offset, LOCAL_BYTES + entry.fullName.length);
  const name = new Uint8Array(view.buffer, view.byteOffset + LOCAL_BYTES, entry.fullName.length);
  const same = view.getUint32(0, true) === LOCAL && view.getUint16(8, true) === entry.method &&
    view.getUint16(26, true) === name.length && name.every((byte, i) => byte === entry.fullName[i]) &&
    (view.getUint16(6, true) & ~HARMLESS_FLAGS) === 0;
  const start = entry.offset + LOCAL_BYTES + name.length + view.getUint16(28, true);
  if (same && start + entry.packed <= source.size) return start;
  throw refuse("entry", source.name, `the header of ${entry.name} is not what the directory says`);
}

async function entryTensor(source: ByteSource, entry: ZipEntry): Promise<DumpTensor> {
  const start = await dataOf(source, entry), file = `${entry.name} of ${source.name}`;
  if (entry.method === DEFLATED) return await packedTensor(source, entry, start, file);
  const read = (offset: number, length: number) => source.read(start + offset, length);
  const header = await readNpyHeader(read, entry.size, file);
  let checked = false;
  const inside = {
    name: source.name,
    async read(offset: number, length: number) {
      if (!checked) await checkStored(source, entry, start);
      checked = true;
      return await source.read(offset, length);
    },
  };
  return inCOrder(
    placedTensor({ ...header, name: entry.name, source: inside, start: start + header.dataStart }),
    header,
  );
}

async function checkStored(source: ByteSource, { name, crc, packed }: ZipEntry, start: number): Promise<void> {
  const sum = new Crc32();
  for await (const piece of pieces(source, start, packed)) sum.add(piece);
  if (sum.value !== crc) throw refuse("checksum", source.name, `${name} is damaged: its checksum is another`);
}

async function* pieces(source: ByteSource, start: number, length: number): AsyncGenerator<Uint8Array> {
  for (let done = 0; done < length; done += CHUNK) {
    yield await source.read(start + done, Math.min(CHUNK, length - done));
  }
}

async function packedTensor(source: ByteSource, entry: ZipEntry, start: number, file: string): Promise<DumpTensor> {
  const first = await beginning(source, entry, start);
  const header = await readNpyHeader(
    (offset, length) => Promise.resolve(first.subarray(offset, offset + length)),
    entry.size,
    file,
  );
  const { shape, type } = header, size = shape.reduce((product, each) => product * each, 1);
  const tensor: DumpTensor = {
    ...{ name: entry.name, shape, type },
    async read(from, count, signal) {
      const values = await unpacked(source, entry, start, { ...header, size }, signal);
      return count === size ? values : values.slice(from, from + count);
    },
  };
  return inCOrder(tensor, header);
}

/** The first bytes of an entry, enough for an array's header. */
async function beginning(source: ByteSource, entry: ZipEntry, start: number): Promise<Uint8Array> {
  const first = new Uint8Array(Math.min(HEADER_ROOM, entry.size));
  let at = 0;
  for await (const piece of inflated(source, entry, start)) {
    first.set(piece.subarray(0, first.length - at), at);
    at = Math.min(first.length, at + piece.length);
    if (at === first.length) break;
  }
  return first.subarray(0, at);
}

interface Wanted extends NpyHeader {
  /** Numbers. */
  readonly size: number;
}

/** All numbers of a packed array, decoded as they come. */
async function unpacked(
  source: ByteSource,
  entry: ZipEntry,
  start: number,
  { type, dataStart, size, little }: Wanted,
  signal?: AbortSignal,
): Promise<Float32Array> {
  const float = floatTypeOf(entry.name, type, source.name), each = FLOAT_BYTES[float];
  const values = new Float32Array(size), sum = new Crc32();
  let seen = 0, done = 0, rest = new Uint8Array(0);
  for await (const piece of inflated(source, entry, start)) {
    signal?.throwIfAborted();
    sum.add(piece);
    const bytes = piece.subarray(Math.max(0, Math.min(piece.length, dataStart - seen)));
    seen += piece.length;
    const all = rest.length === 0 ? bytes : concatenate([rest, bytes], Uint8Array),
      whole = all.length - all.length % each;
    decodeFloats(float, all.subarray(0, whole), values, done, little);
    done += whole / each;
    rest = all.slice(whole);
  }
  if (seen !== entry.size || sum.value !== entry.crc) {
    throw refuse("checksum", source.name, `${entry.name} is damaged: its size or checksum is another`);
  }
  return values;
}

/** An entry's bytes, never more than it promises. */
async function* inflated(source: ByteSource, entry: ZipEntry, start: number): AsyncGenerator<Uint8Array> {
  const ready: Uint8Array[] = [], inflate = new Inflate((piece) => void ready.push(piece));
  let left = entry.size, at = 0;
  for await (const chunk of pieces(source, start, entry.packed)) {
    at += chunk.length;
    try {
      inflate.push(chunk, at === entry.packed);
    } catch {
      throw refuse("packing", source.name, `${entry.name} can't be unpacked`);
    }
    for (const piece of ready.splice(0)) {
      left -= piece.length;
      if (left < 0) throw refuse("size", source.name, `${entry.name} unpacks to more than ${entry.size} bytes`);
      yield piece;
    }
  }
}
