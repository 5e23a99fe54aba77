/**
 * The file of a snapshot (docs/snapshots.md): a safetensors file whose metadata say what it is, and whose last tensor is
 * the manifest, SHA-256 of the header and of every chunk of every section. This file knows sections, sizes and hashes,
 * and nothing of what is in them.
 *
 * A section is a run of tensors with the same name up to the last dot: `layer.7.keys` is of section `layer.7`.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import { PalisadeError as Refusal } from "../../core/errors.ts";
import { breathe } from "../../runtime/breathe.ts";
import type { Hasher } from "../../runtime/interface.ts";
import { checkHeader, type Dtype, DTYPE_BYTES, type HeaderEntry } from "../file/safetensors.ts";
import type { ByteSink, ByteSource } from "./bytes.ts";

/** Raised whenever a reader of the old form would misunderstand the new one. */
export const FORMAT_VERSION = "1";
/** The metadata key that makes a safetensors file a snapshot. */
export const FORMAT_KEY = "palisade_snapshot";

/** A chunk is hashed by itself, so that nothing is used before its hash held. */
const CHUNK_BYTES = 4 * 2 ** 20;
/** Far more than a model of 512 layers needs. */
const MAX_HEADER = 4 * 2 ** 20;
const HASH_BYTES = 32;
const MANIFEST = "manifest", MANIFEST_TENSOR = `${MANIFEST}.sha256`;
/** Read at once in the beginning: most headers fit. */
const FIRST_READ = 2 ** 16;

/** Makes a running SHA-256: `Runtime.sha256`. */
export type NewHash = () => Hasher;

/** One tensor that is to be written. */
export interface TensorSpec {
  /** Without its section's name. */
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
}

/** A section that is to be written: its tensors' shapes are known before, their bytes when their turn comes. */
export interface SectionSpec {
  readonly name: string;
  readonly tensors: readonly TensorSpec[];
  /** The bytes of each tensor, in the order of {@link tensors}. */
  bytes(): Promise<readonly Uint8Array[]>;
}

/** A tensor of a section that was read and whose hashes held. */
export interface SectionTensor {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** Of its own, so that views of any element size fit. */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** An open snapshot whose header is whole. Sections are read, and checked, when they are asked for. */
export interface SnapshotFile {
  /** For messages. */
  readonly name: string;
  /** Bytes of the file. */
  readonly size: number;
  readonly metadata: ReadonlyMap<string, string>;
  /** Names, in the order of the file, without the manifest. */
  readonly sections: readonly string[];
  /** Type and shape of a section's tensors by their names in it, before it is read. */
  layout(section: string): ReadonlyMap<string, TensorSpec>;
  /** @throws PalisadeError input `snapshot.damaged`, the section as its place; `snapshot.layout` when there is none. */
  read(section: string): Promise<ReadonlyMap<string, SectionTensor>>;
}

/** A refusal of the file called `name`. `where`: the section. */
export function refuse(code: string, name: string, where: string, reason: string, cause?: unknown): PalisadeError {
  return inputError(`snapshot.${code}`, `${name}: ${reason}`, where, cause);
}

/** While a snapshot is written. */
export interface WriteOptions {
  readonly signal?: AbortSignal;
  /** Sections written so far, of all. */
  readonly onSection?: (done: number, sections: number) => void;
}

/**
 * Writes a snapshot into `sink` and commits it; aborts the sink when anything fails.
 * @throws RangeError when a section's bytes don't fit what it said; and what `sink` and the sections throw; the signal's reason.
 */
export async function writeSnapshot(
  sink: ByteSink,
  metadata: Readonly<Record<string, string>>,
  sections: readonly SectionSpec[],
  newHash: NewHash,
  { signal, onSection }: WriteOptions = {},
): Promise<void> {
  try {
    const header = headerBytes(metadata, sections);
    const hashes = [digestOf(newHash, header)];
    await sink.write(header);
    for (const [i, section] of sections.entries()) {
      await breathe(signal);
      hashes.push(...await writeSection(sink, section, newHash));
      onSection?.(i + 1, sections.length);
    }
    await sink.write(sealed(hashes, newHash));
    await sink.commit();
  } catch (error) {
    await sink.abort();
    throw error;
  }
}

/** Bytes that {@link writeSnapshot} will write. */
export function snapshotBytes(metadata: Readonly<Record<string, string>>, sections: readonly SectionSpec[]): number {
  const sizes = sections.map(({ tensors }) => tensors.reduce((sum, tensor) => sum + byteLength(tensor), 0));
  const chunks = sizes.reduce((sum, size) => sum + chunksOf(size), 0);
  const header = headerBytes(metadata, sections).length;
  return sizes.reduce((sum, size) => sum + size, header + HASH_BYTES * (chunks + 2));
}

/** Length, JSON and padding, so that the data begin at a multiple of 8. */
function headerBytes(metadata: Readonly<Record<string, string>>, sections: readonly SectionSpec[]): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { [FORMAT_KEY]: FORMAT_VERSION, ...metadata } };
  let at = 0, chunks = 0;
  for (const { name: section, tensors } of sections) {
    const start = at;
    for (const { name, dtype, shape } of tensors) {
      header[`${section}.${name}`] = { dtype, shape, data_offsets: [at, at += byteLength({ dtype, shape })] };
    }
    chunks += chunksOf(at - start);
  }
  const manifest = HASH_BYTES * (chunks + 2);
  header[MANIFEST_TENSOR] = { dtype: "U8", shape: [manifest], data_offsets: [at, at + manifest] };
  const text = new TextEncoder().encode(JSON.stringify(header)), padded = Math.ceil(text.length / 8) * 8;
  if (padded > MAX_HEADER) throw new RangeError(`A snapshot's header of ${padded} bytes: at most ${MAX_HEADER}`);
  const bytes = new Uint8Array(8 + padded).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(text, 8);
  return bytes;
}

/** Writes one section; the hashes of its chunks. */
async function writeSection(sink: ByteSink, section: SectionSpec, newHash: NewHash): Promise<Uint8Array[]> {
  const parts = await section.bytes(), hashes: Uint8Array[] = [];
  if (parts.length !== section.tensors.length) throw new RangeError(`Section ${section.name}: ${parts.length} tensors`);
  let hash = newHash(), filled = 0;
  for (const [i, part] of parts.entries()) {
    const wanted = byteLength(section.tensors[i]);
    if (part.length !== wanted) {
      throw new RangeError(`${section.name}.${section.tensors[i].name} has ${part.length} bytes: want ${wanted}`);
    }
    for (let at = 0; at < part.length;) {
      const piece = part.subarray(at, at + CHUNK_BYTES - filled);
      hash.update(piece);
      await sink.write(piece);
      at += piece.length;
      filled += piece.length;
      if (filled < CHUNK_BYTES) continue;
      hashes.push(hexBytes(hash.digest()));
      [hash, filled] = [newHash(), 0];
    }
  }
  if (filled > 0) hashes.push(hexBytes(hash.digest()));
  return hashes;
}

/** The manifest's bytes: the hashes and, last, their own. */
function sealed(hashes: readonly Uint8Array[], newHash: NewHash): Uint8Array {
  const bytes = new Uint8Array(HASH_BYTES * (hashes.length + 1));
  hashes.forEach((hash, i) => bytes.set(hash, HASH_BYTES * i));
  bytes.set(digestOf(newHash, bytes.subarray(0, HASH_BYTES * hashes.length)), HASH_BYTES * hashes.length);
  return bytes;
}

function byteLength({ dtype, shape }: Pick<TensorSpec, "dtype" | "shape">): number {
  return shape.reduce((product, size) => product * size, DTYPE_BYTES[dtype]);
}

function chunksOf(bytes: number): number {
  return Math.ceil(bytes / CHUNK_BYTES);
}

function digestOf(newHash: NewHash, bytes: Uint8Array): Uint8Array {
  const hash = newHash();
  hash.update(bytes);
  return hexBytes(hash.digest());
}

function hexBytes(hex: string): Uint8Array {
  return Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}

function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** Where a section lies in the file, and the hashes of its chunks. */
interface Place {
  readonly start: number;
  readonly length: number;
  readonly tensors: readonly (HeaderEntry & { readonly short: string })[];
  /** `[chunks · 32]`. */
  readonly hashes: Uint8Array;
}

/**
 * Reads a snapshot's header and manifest and checks every size and both hashes; no section is read.
 *
 * PalisadeErrors of kind input, where = `header` or `manifest`: `snapshot.kind` (no snapshot), `snapshot.version`,
 * `snapshot.header` (not of the right form), `snapshot.size` (shorter or longer than the header says),
 * `snapshot.damaged`; and what `source` throws.
 */
export async function openSnapshot(source: ByteSource, newHash: NewHash): Promise<SnapshotFile> {
  const { name, size } = source;
  if (size < 8) throw refuse("kind", name, "header", `it isn't a snapshot: it has ${size} bytes`);
  const first = await source.read(0, Math.min(size, FIRST_READ)), length = headerLength(first, name, size);
  const start = 8 + length;
  const header = start <= first.length ? first.subarray(0, start) : await source.read(0, start);
  const { metadata, entries, end } = parseHeader(header, name);
  if (size !== start + end) {
    const reason = size < start + end ? "it was cut" : "something was added";
    throw refuse("size", name, "header", `it has ${size} bytes where its header says ${start + end}: ${reason}`);
  }
  const sections = sectionsOf(entries, name), last = entries.at(-1)!;
  const manifest = await source.read(start + last.start, last.end - last.start);
  checkManifest(manifest, sections, header, { name, newHash });
  return new OpenSnapshot(source, newHash, metadata, placesOf(sections, start, manifest));
}

function headerLength(first: Uint8Array<ArrayBuffer>, name: string, size: number): number {
  const length = new DataView(first.buffer, first.byteOffset).getBigUint64(0, true);
  if (first[8] !== 0x7b) throw refuse("kind", name, "header", "it isn't a snapshot, or its beginning is damaged");
  if (length > BigInt(MAX_HEADER)) {
    throw refuse("header", name, "header", `a header of ${length} bytes: at most ${MAX_HEADER}`);
  }
  if (8 + Number(length) > size) {
    throw refuse("size", name, "header", `a header of ${length} bytes in a file of ${size}: it was cut, or is damaged`);
  }
  return Number(length);
}

/** Metadata and tensors, in the order of the file; `end`: bytes of data. */
function parseHeader(header: Uint8Array, name: string) {
  const text = decoded(header.subarray(8), name);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw refuse("header", name, "header", `the header is no JSON: ${(error as Error).message}`, error);
  }
  const metadata = metadataOf(json, name);
  // As JSON is written here: this leaves no room for names that come twice, nor for anything between the values.
  if (text.trimEnd() !== JSON.stringify(json)) {
    throw refuse("header", name, "header", "the header is written otherwise than a snapshot's");
  }
  try {
    const { entries, end } = checkHeader(json as Record<string, unknown>, name);
    return { metadata, entries, end };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    throw inputError("snapshot.header", error.said, "header", error);
  }
}

function decoded(bytes: Uint8Array, name: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw refuse("header", name, "header", "the header is no UTF-8 text", error);
  }
}

function metadataOf(json: unknown, name: string): ReadonlyMap<string, string> {
  const values = isObject(json) ? json.__metadata__ : undefined;
  const version = isObject(values) && Object.hasOwn(values, FORMAT_KEY) ? values[FORMAT_KEY] : undefined;
  if (version === undefined) {
    throw refuse("kind", name, "header", `it isn't a snapshot: its metadata have no ${FORMAT_KEY}`);
  }
  if (version !== FORMAT_VERSION) {
    const shown = JSON.stringify(version)?.slice(0, 40);
    throw refuse("version", name, "header", `a snapshot of version ${shown}: this palisade reads ${FORMAT_VERSION}`);
  }
  if (!Object.values(values as object).every((value) => typeof value === "string")) {
    throw refuse("header", name, "header", "the metadata must be texts");
  }
  return new Map(Object.entries(values as Record<string, string>));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The tensors by section; the manifest must be the last. */
function sectionsOf(entries: readonly HeaderEntry[], name: string): Map<string, Place["tensors"]> {
  const sections = new Map<string, (HeaderEntry & { short: string })[]>();
  let before: string | undefined;
  for (const entry of entries) {
    const dot = entry.name.lastIndexOf("."), section = entry.name.slice(0, Math.max(0, dot));
    if (section !== before && sections.has(section)) {
      throw refuse("header", name, "header", `section ${section} comes twice`);
    }
    const tensors = sections.get(section) ?? [];
    sections.set(section, tensors);
    tensors.push({ ...entry, short: entry.name.slice(dot + 1) });
    before = section;
  }
  if (entries.at(-1)?.name !== MANIFEST_TENSOR || sections.get(MANIFEST)!.length !== 1) {
    throw refuse("header", name, "header", "the manifest is not the last of its parts");
  }
  sections.delete(MANIFEST);
  return sections;
}

function spanOf(tensors: Place["tensors"]): { start: number; length: number } {
  return { start: tensors[0].start, length: tensors.at(-1)!.end - tensors[0].start };
}

function checkManifest(
  manifest: Uint8Array,
  sections: ReadonlyMap<string, Place["tensors"]>,
  header: Uint8Array,
  { name, newHash }: { readonly name: string; readonly newHash: NewHash },
): void {
  let chunks = 0;
  for (const tensors of sections.values()) chunks += chunksOf(spanOf(tensors).length);
  const body = HASH_BYTES * (chunks + 1);
  if (manifest.length !== body + HASH_BYTES) {
    throw refuse("header", name, "header", `a manifest of ${manifest.length} bytes: want ${body + HASH_BYTES}`);
  }
  if (!isEqual(manifest.subarray(body), digestOf(newHash, manifest.subarray(0, body)))) {
    throw refuse("damaged", name, MANIFEST, "its manifest is damaged");
  }
  if (!isEqual(manifest.subarray(0, HASH_BYTES), digestOf(newHash, header))) {
    throw refuse("damaged", name, "header", "its header is damaged");
  }
}

function placesOf(sections: ReadonlyMap<string, Place["tensors"]>, start: number, manifest: Uint8Array) {
  const places = new Map<string, Place>();
  let at = HASH_BYTES;
  for (const [name, tensors] of sections) {
    const span = spanOf(tensors), hashes = manifest.subarray(at, at += HASH_BYTES * chunksOf(span.length));
    places.set(name, { start: start + span.start, length: span.length, tensors, hashes });
  }
  return places;
}

class OpenSnapshot implements SnapshotFile {
  readonly name: string;
  readonly size: number;
  readonly metadata: ReadonlyMap<string, string>;
  readonly sections: readonly string[];
  readonly #source: ByteSource;
  readonly #newHash: NewHash;
  readonly #places: ReadonlyMap<string, Place>;

  constructor(
    source: ByteSource,
    newHash: NewHash,
    metadata: ReadonlyMap<string, string>,
    places: ReadonlyMap<string, Place>,
  ) {
    this.name = source.name;
    this.size = source.size;
    this.metadata = metadata;
    this.sections = [...places.keys()];
    this.#source = source;
    this.#newHash = newHash;
    this.#places = places;
  }

  layout(section: string): ReadonlyMap<string, TensorSpec> {
    const { tensors } = this.#place(section);
    return new Map(tensors.map(({ short, dtype, shape }) => [short, { name: short, dtype, shape }]));
  }

  async read(section: string): Promise<ReadonlyMap<string, SectionTensor>> {
    const place = this.#place(section), bytes = new Uint8Array(place.length);
    for (let at = 0, chunk = 0; at < place.length; at += CHUNK_BYTES, chunk++) {
      const part = await this.#source.read(place.start + at, Math.min(CHUNK_BYTES, place.length - at));
      const wanted = place.hashes.subarray(HASH_BYTES * chunk, HASH_BYTES * (chunk + 1));
      if (!isEqual(digestOf(this.#newHash, part), wanted)) {
        const reason = `section ${section} is damaged, bytes ${place.start + at} to ${place.start + at + part.length}`;
        throw refuse("damaged", this.name, section, reason);
      }
      bytes.set(part, at);
    }
    return new Map(place.tensors.map(({ short, dtype, shape, start, end }) => {
      const first = start - place.tensors[0].start;
      return [short, { dtype, shape, bytes: bytes.slice(first, first + end - start) }];
    }));
  }

  #place(section: string): Place {
    const place = this.#places.get(section);
    if (!place) throw refuse("layout", this.name, section, `it has no section ${section}`);
    return place;
  }
}
