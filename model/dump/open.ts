/** Opens what dumps come in: one file of either kind, known by its first bytes, or a folder of such files. */
import { hostOf } from "../../runtime/host.ts";
import type { ByteSource, Runtime } from "../../runtime/interface.ts";
import { spooled } from "../../runtime/spool.ts";
import { dataStart, parseHeader } from "../file/safetensors_header.ts";
import { NPY_MAGIC, npyTensor } from "./npy.ts";
import { openNpz, ZIP_MAGIC } from "./npz.ts";
import { type DumpContainer, dumpError, placedTensor } from "./tensors.ts";

/** Most files of a folder. */
const MAX_FILES = 65536;
const ENDINGS = /\.(safetensors|npy|npz)$/;

/**
 * Opens a file, a folder, a pipe, or standard input for `-`. A pipe is taken in first: in memory while it is small, else
 * in a file that is removed when the dump is closed.
 * @throws PalisadeError `file.*`, `dump.*`, `safetensors.*`, `npy.*`, `npz.*`; the signal's reason.
 */
export async function openDump(path: string, runtime: Runtime, signal?: AbortSignal): Promise<DumpContainer> {
  const host = hostOf(runtime, `read ${path}`);
  const info = path === "-" ? undefined : await host.info(path);
  if (info?.kind === "folder") return await openFolder(path, runtime);
  const piped = path === "-" || info?.kind === "other";
  const source = piped ? await spooled(runtime, path, { signal, check: checkStart }) : await runtime.openFile(path);
  return await openSource(source);
}

/**
 * Opens one file, wherever it lies; it takes over the source, and closes it where it is refused.
 * @throws PalisadeError `dump.kind`, `safetensors.*`, `npy.*`, `npz.*`, `file.*`.
 */
export async function openSource(source: ByteSource): Promise<DumpContainer> {
  try {
    const first = await source.read(0, Math.min(16, source.size));
    checkStart(first, source.name);
    if (begins(first, NPY_MAGIC)) return await openNpy(source);
    return begins(first, ZIP_MAGIC) ? await openNpz(source) : await openSafetensors(source);
  } catch (error) {
    await source.close();
    throw error;
  }
}

function begins(bytes: Uint8Array, magic: readonly number[]): boolean {
  return magic.every((byte, i) => bytes[i] === byte);
}

/** Refuses what is none of the kinds, by its first bytes: nine or more, or all there are. */
export function checkStart(first: Uint8Array, name: string): void {
  if (begins(first, NPY_MAGIC) || begins(first, ZIP_MAGIC)) return;
  if (first.length > 8 && first[8] === 0x7b) return;
  throw dumpError("kind", `${name} is no dump: want a .safetensors, .npy or .npz file, or a folder of them`, name);
}

async function openSafetensors(source: ByteSource): Promise<DumpContainer> {
  const start = dataStart(await source.read(0, Math.min(9, source.size)), source.size, source.name);
  const header = parseHeader(await source.read(8, start - 8), source.size - start, source.name);
  const byName = new Map(header.tensors.map((entry) => [entry.name, entry]));
  return {
    name: source.name,
    names: [...byName.keys()],
    tensor(name) {
      const { shape, dtype, start: at } = byName.get(name)!;
      return Promise.resolve(placedTensor({ name, shape, type: dtype, source, start: start + at }));
    },
    close: () => source.close(),
  };
}

/** The only tensor of a file is called as the file is. */
async function openNpy(source: ByteSource): Promise<DumpContainer> {
  const name = stemOf(source.name.split(/[\\/]/).at(-1)!);
  const tensor = await npyTensor(source, name);
  return { name: source.name, names: [name], tensor: () => Promise.resolve(tensor), close: () => source.close() };
}

function stemOf(path: string): string {
  return path.replace(ENDINGS, "");
}

/** Files are opened when something of them is wanted, and one at a time. */
async function openFolder(path: string, runtime: Runtime): Promise<DumpContainer> {
  const files = (await filesIn(path, runtime)).sort();
  if (files.length === 0) throw dumpError("empty", `There is no .safetensors, .npy or .npz file in ${path}`, path);
  const host = hostOf(runtime, `read ${path}`);
  const open = async (file: string) => await openSource(await runtime.openFile(host.join(path, file)));
  const places = new Map<string, { readonly file: string; readonly inner: string }>();
  for (const file of files) {
    const container = await open(file);
    for (const inner of container.names) {
      const name = file.endsWith(".npy") ? stemOf(file) : `${stemOf(file)}/${inner}`;
      if (places.has(name)) throw dumpError("names", `${name} comes twice in ${path}`, name);
      places.set(name, { file, inner });
    }
    await container.close();
  }
  let last: { readonly file: string; readonly container: DumpContainer } | undefined;
  const close = async () => {
    await last?.container.close();
    last = undefined;
  };
  const containerOf = async (file: string) => {
    if (last?.file === file) return last.container;
    await close();
    last = { file, container: await open(file) };
    return last.container;
  };
  return {
    name: path,
    names: [...places.keys()],
    async tensor(name) {
      const { file, inner } = places.get(name)!, { shape, type } = await (await containerOf(file)).tensor(inner);
      const read = async (first: number, count: number, signal?: AbortSignal) =>
        await (await (await containerOf(file)).tensor(inner)).read(first, count, signal);
      return { name, shape, type, read };
    },
    close,
  };
}

/** The files that a dump is read from, for those who must not write over them; none where there is nothing yet. */
export async function dumpFiles(path: string, runtime: Runtime): Promise<string[]> {
  const host = hostOf(runtime, `read ${path}`);
  const folder = path !== "-" && (await host.info(path))?.kind === "folder";
  return folder ? (await filesIn(path, runtime)).map((file) => host.join(path, file)) : [path];
}

/** Files of dumps below a folder, as paths with `/`. */
async function filesIn(path: string, runtime: Runtime): Promise<string[]> {
  const host = hostOf(runtime, `read ${path}`), found: string[] = [];
  const look = async (folder: string, depth: number) => {
    for (const name of await host.list(host.join(path, folder))) {
      const inside = folder === "" ? name : `${folder}/${name}`;
      const kind = (await host.info(host.join(path, inside)))?.kind;
      if (kind === "folder" && depth < 4) await look(inside, depth + 1);
      if (kind === "file" && ENDINGS.test(name)) found.push(inside);
      if (found.length > MAX_FILES) throw dumpError("files", `More than ${MAX_FILES} files in ${path}`, path);
    }
  };
  await look("", 0);
  return found;
}
