/**
 * The one place that opens output files. No output harms a file that isn't ours:
 *
 * - {@link checkOutputs} refuses, before anything is read, loaded or fetched, an output that is also an input or another
 *   output (compared by the real file), and one whose place is taken by a file of another kind;
 * - {@link writeWhole} writes beside the target and renames, so that a file is the old one or the new one, whole;
 * - {@link openForAppending} is for files that grow line by line, {@link openTemporary} for those nobody sees.
 */
import { inputError, PalisadeError } from "../core/errors.ts";
import { hostOf } from "./host.ts";
import type { ByteSink, ByteSource, Host, Runtime } from "./interface.ts";

/** A kind of file that we write, and so may replace or go on in. */
export interface OutputKind {
  /** In messages, e.g. `a table of palisade report`. */
  readonly name: string;
  /** Why a file that is there is none of this kind; undefined when it is one. Never asked about empty files. */
  problem(file: ByteSource): Promise<string | undefined>;
}

export interface Output {
  readonly path: string;
  /** The option that names it, e.g. `--csv`. */
  readonly where: string;
  readonly kind: OutputKind;
}

export interface Input {
  /** `-` is standard input. */
  readonly path: string;
  /** What it is read as, e.g. `the context`. */
  readonly what: string;
}

/** A kind that shows in the metadata of a safetensors file. */
export function kindByMetadata(name: string, key: string): OutputKind {
  return {
    name,
    async problem(file) {
      const other = `its metadata has no ${key}`;
      if (file.size < 8) return other;
      const length = Number(new DataView((await file.read(0, 8)).buffer).getBigUint64(0, true));
      if (8 + length > file.size) return other;
      return new TextDecoder().decode(await file.read(8, length)).includes(`"${key}"`) ? undefined : other;
    },
  };
}

/** A kind that is known by how its files begin. `starts`: any of them. */
export function kindByStart(name: string, starts: readonly string[]): OutputKind {
  const longest = Math.max(...starts.map((start) => start.length));
  return {
    name,
    async problem(file) {
      const bytes = await file.read(0, Math.min(file.size, 3 * longest));
      const text = new TextDecoder().decode(bytes);
      return starts.some((start) => text.startsWith(start)) ? undefined : "it begins otherwise";
    },
  };
}

/**
 * Refuses outputs that would harm something. Reads nothing but what stands in the outputs' places.
 * @throws PalisadeError input `output.is-input`, `output.twice`, `output.foreign`; `file.*` where nothing can be written.
 */
export async function checkOutputs(
  runtime: Runtime,
  outputs: readonly Output[],
  inputs: readonly Input[],
): Promise<void> {
  const host = hostOf(runtime, "write files");
  const read = new Map<string, string>(), written = new Map<string, string>();
  for (const { path, what } of inputs) for (const key of await keysOf(host, path)) read.set(key, what);
  for (const output of outputs) {
    const { path, where } = output;
    if (path === "") throw inputError("file.not-found", `Can't write a file: ${where} is empty`, where);
    if ((await host.info(path))?.kind === "other") continue; // a pipe or device takes what it is given
    const keys = await keysOf(host, path);
    const input = firstOf(read, keys), other = firstOf(written, keys);
    if (input) refuse("is-input", output, `it is also read, as ${input}`);
    if (other) refuse("twice", output, `${other} is the same file`);
    for (const key of keys) written.set(key, where);
    await checkPlace(runtime, host, output);
  }
}

function firstOf(known: ReadonlyMap<string, string>, keys: readonly string[]): string | undefined {
  return keys.map((key) => known.get(key)).find((name) => name !== undefined);
}

/** What tells a file from others: its real path, also when it is still to be made, and the file itself. */
async function keysOf(host: Host, path: string): Promise<string[]> {
  if (path === "-") path = "/dev/stdin"; // a file may have been sent there
  try {
    const [identity, real] = [await host.identity(path), await host.realPath(path)];
    return identity === undefined ? [real] : [identity, real];
  } catch (error) {
    // Who reads or writes it says what is wrong.
    if (error instanceof PalisadeError) return [];
    throw error;
  }
}

function refuse(code: string, { path, where }: Output, reason: string): never {
  throw inputError(`output.${code}`, `Can't write ${where} ${path}: ${reason}; name another file`, where);
}

/** What is there must be ours, and something can be written. */
async function checkPlace(runtime: Runtime, host: Host, output: Output): Promise<void> {
  const { path, kind } = output, found = await host.info(path);
  if (found?.kind === "file" && found.size > 0) {
    const problem = await problemOf(runtime, path, kind);
    if (problem) refuse("foreign", output, `the file that is there is not ${kind.name} (${problem})`);
  }
  // A file that may not be written stays as it is, although its folder would let it be replaced.
  if (found) await (await host.create(path, { append: true })).close();
  const real = await host.realPath(path), part = besideOf(real, host);
  // What can't be looked at or removed is no reason not to write.
  await removeStale(host, real).catch(() => {});
  await (await host.create(part, { named: path, temporary: true })).close();
  await host.remove(part);
}

async function problemOf(runtime: Runtime, path: string, kind: OutputKind): Promise<string | undefined> {
  const source = await runtime.openFile(path);
  try {
    return await kind.problem(source);
  } finally {
    await source.close();
  }
}

/** A name of its own in the same folder. */
function besideOf(path: string, { processTag }: Host): string {
  return path.replace(/[^/\\]*$/, `.palisade-${processTag}-${crypto.randomUUID()}.part`);
}

/** What {@link besideOf} makes; the tag is in brackets. */
const PART = /^\.palisade-([0-9a-f]+-\d+)-[0-9a-f-]{36}\.part$/;
/** Another machine's process can't be asked; a day without a change it has ended. */
const STALE_MS = 24 * 3600 * 1000;

/** Removes what processes that were killed left half written in the folder of `path`. */
async function removeStale(host: Host, path: string): Promise<void> {
  const folder = path.replace(/[^/\\]*$/, "");
  for (const name of await host.list(folder === "" ? "." : folder)) {
    const tag = PART.exec(name)?.[1], part = `${folder}${name}`;
    if (tag === undefined) continue;
    const gone = host.isGone(tag) ?? Date.now() - ((await host.info(part))?.modified ?? Date.now()) > STALE_MS;
    if (gone) await host.remove(part);
  }
}

/**
 * Writes a file whole, or leaves what was there: beside it first, to the disk, then under its name. Links stay links.
 * `secret`: only its owner may read it, and what killed processes left of such writing in the folder is removed first.
 * @throws PalisadeError `file.*`, naming `path`; nothing is left then.
 */
export async function writeWhole(
  runtime: Runtime,
  path: string,
  content: Uint8Array | readonly Uint8Array[] | AsyncIterable<Uint8Array>,
  { secret = false }: { readonly secret?: boolean } = {},
): Promise<void> {
  const host = hostOf(runtime, `write ${path}`), parts = content instanceof Uint8Array ? [content] : content;
  if ((await host.info(path))?.kind === "other") return await fill(await host.create(path), parts);
  const real = await host.realPath(path), part = besideOf(real, host);
  if (secret) await removeStale(host, real);
  const sink = await host.create(part, { named: path, temporary: true, like: real, secret });
  try {
    await fill(sink, parts, true);
    if (!await host.rename(part, real)) throw new Error(`${part} was removed by someone else`);
  } catch (error) {
    await host.remove(part);
    throw error;
  }
  await host.syncFolder(real);
}

type Parts = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

async function fill(sink: ByteSink, parts: Parts, sync = false): Promise<void> {
  try {
    for await (const part of parts) await sink.write(part);
    if (sync) await sink.sync();
  } finally {
    await sink.close();
  }
}

/** Opens a file at its end, or makes it. PalisadeErrors as `Host.create`. */
export function openForAppending(runtime: Runtime, path: string): Promise<ByteSink> {
  return hostOf(runtime, `write ${path}`).create(path, { append: true });
}

/** A new file among the temporary ones, which ends with the process; who is done with it removes it before. */
export async function openTemporary(runtime: Runtime, ending: string): Promise<{ path: string; sink: ByteSink }> {
  const host = hostOf(runtime, "hold what doesn't fit into memory");
  const path = host.join(host.temporaryFolder, `palisade-${crypto.randomUUID()}${ending}`);
  return { path, sink: await host.create(path, { temporary: true }) };
}
