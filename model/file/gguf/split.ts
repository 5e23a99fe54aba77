/**
 * Models split over several files, `NAME-00001-of-00003.gguf` and so on, as one. The first part has the metadata; each
 * part has its own tensors, and says which part it is (`split.no` from 0, `split.count`, `split.tensors.count`).
 * Source: ggml-org/llama.cpp, `tools/gguf-split`.
 */
import { inputError, type PalisadeError } from "../../../core/errors.ts";
import type { ByteSource, Runtime } from "../../../runtime/interface.ts";
import type { Notice } from "../notice.ts";
import { quoted } from "./cursor.ts";
import { openGguf } from "./reader.ts";
import type { GgufFile, GgufTensor, GgufValue, RawRange } from "./types.ts";

/** Far more than the largest models have. */
const MAX_PARTS = 1024;

/** The files of the model at `path`, in order: `path` alone unless its name says that it is one of several parts. */
export function partPaths(path: string): string[] {
  const found = /^(.*)-(\d{5})-of-(\d{5})(\.gguf)$/is.exec(path);
  const count = Number(found?.[3]), part = Number(found?.[2]);
  if (!found || count < 2 || part < 1 || part > count || count > MAX_PARTS) return [path];
  return Array.from(
    { length: count },
    (_, i) => `${found[1]}-${String(i + 1).padStart(5, "0")}-of-${found[3]}${found[4]}`,
  );
}

/**
 * Opens the GGUF file at `path`, and the other parts with it where it is one of several.
 * @throws PalisadeErrors as `openGguf`, and input `gguf.split` for a part that is missing or belongs elsewhere; `where`
 * is the part's path.
 */
export async function openGgufFile(path: string, runtime: Pick<Runtime, "openFile">): Promise<GgufFile> {
  const paths = partPaths(path), parts: GgufFile[] = [];
  if (paths.length === 1) return await openGguf(await runtime.openFile(path));
  try {
    for (const each of paths) parts.push(await openGguf(await openPart(each, paths.length, runtime)));
    return new SplitGguf(parts, joinTensors(parts, paths, "its name says"));
  } catch (error) {
    for (const part of parts) await part.close();
    throw error;
  }
}

/** An open model, and its parts in order. */
export interface OpenSources {
  readonly file: GgufFile;
  readonly sources: readonly ByteSource[];
}

/**
 * Opens a model whose bytes are given: one source, or all parts of a split one, in any order. It takes over the sources
 * and closes them, also when they are refused.
 * @throws PalisadeErrors as `openGguf`, and input `gguf.split` for parts that are missing or belong elsewhere.
 */
export async function openGgufSources(sources: readonly ByteSource[]): Promise<OpenSources> {
  const parts: OpenPart[] = [];
  let taken = 0;
  try {
    if (sources.length === 0) {
      throw refuse("no sources", "there is none; give the model's bytes, or those of all parts");
    }
    for (const source of sources) {
      taken++;
      parts.push({ source, file: await openGguf(source) });
    }
    return joinSources(parts);
  } catch (error) {
    for (const { file } of parts) await file.close();
    for (const source of sources.slice(taken)) await source.close();
    throw error;
  }
}

interface OpenPart {
  readonly source: ByteSource;
  readonly file: GgufFile;
}

function joinSources(parts: readonly OpenPart[]): OpenSources {
  const [{ source, file }] = parts, promised = file.metadata.get("split.count") ?? 1;
  if (promised !== parts.length) {
    const is = promised === 1 ? "a whole model" : `one of ${String(promised)} parts`;
    throw refuse(source.name, `it is ${is}; the sources are ${parts.length}`);
  }
  if (parts.length === 1) return { file, sources: [source] };
  const number = ({ file }: OpenPart) => Number(file.metadata.get("split.no"));
  const sorted = parts.toSorted((a, b) => number(a) - number(b)), files = sorted.map(({ file }) => file);
  const places = joinTensors(files, sorted.map(({ source }) => source.name), "the sources make it");
  return { file: new SplitGguf(files, places), sources: sorted.map(({ source }) => source) };
}

async function openPart(path: string, count: number, runtime: Pick<Runtime, "openFile">) {
  try {
    return await runtime.openFile(path);
  } catch (error) {
    if ((error as PalisadeError).code !== "file.not-found") throw error;
    throw refuse(path, `it is not there; all ${count} parts must lie in one folder`);
  }
}

/** Which part holds a tensor. */
interface Place {
  readonly part: GgufFile;
  readonly tensor: GgufTensor;
}

/** `told`: what says which part each one should be. */
function joinTensors(parts: readonly GgufFile[], paths: readonly string[], told: string): Map<string, Place> {
  const places = new Map<string, Place>();
  parts.forEach((part, i) => {
    checkPart(part, paths[i], `${told} part ${i + 1} of ${parts.length}`, i, parts.length);
    for (const [name, tensor] of part.tensors) {
      if (places.has(name)) throw refuse(paths[i], `tensor ${quoted(name)} is in another part too`);
      places.set(name, { part, tensor });
    }
  });
  const promised = parts[0].metadata.get("split.tensors.count");
  if (promised !== undefined && promised !== places.size) {
    throw refuse(paths[0], `it promises ${String(promised)} tensors, the parts have ${places.size}`);
  }
  return places;
}

function checkPart(part: GgufFile, path: string, told: string, index: number, count: number): void {
  const number = part.metadata.get("split.no"), of = part.metadata.get("split.count");
  if (number === index && of === count) return;
  const says = number === undefined ? "nothing of parts" : `part ${Number(number) + 1} of ${String(of)}`;
  throw refuse(path, `${told}, its metadata ${says}`);
}

function refuse(path: string, problem: string): PalisadeError {
  return inputError("gguf.split", `Can't join the parts of the model: ${path}: ${problem}`, path);
}

class SplitGguf implements GgufFile {
  readonly name: string;
  readonly size: number;
  readonly version: number;
  readonly alignment: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly notices: readonly Notice[];
  readonly #parts: readonly GgufFile[];
  readonly #places: ReadonlyMap<string, Place>;

  constructor(parts: readonly GgufFile[], places: ReadonlyMap<string, Place>) {
    const [first] = parts;
    this.#parts = parts;
    this.#places = places;
    this.name = first.name;
    this.size = parts.reduce((sum, { size }) => sum + size, 0);
    this.version = first.version;
    this.alignment = first.alignment;
    this.notices = parts.flatMap(({ notices }) => notices);
    this.metadata = new Map([...first.metadata].filter(([key]) => !key.startsWith("split.")));
    this.tensors = new Map([...places].map(([name, { tensor }]) => [name, tensor]));
  }

  readRaw(name: string, range?: RawRange): Promise<Uint8Array<ArrayBuffer>> {
    return this.#partOf(name).readRaw(name, range);
  }

  readFloat32(name: string, rows?: { readonly firstRow?: number; readonly rows?: number }): Promise<Float32Array> {
    return this.#partOf(name).readFloat32(name, rows);
  }

  async close(): Promise<void> {
    for (const part of this.#parts) await part.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** An unknown tensor is the first part's to refuse. */
  #partOf(name: string): GgufFile {
    return this.#places.get(name)?.part ?? this.#parts[0];
  }
}
