/** Fetching a model file from the Hugging Face hub, going on where an earlier download stopped. */
import { inputError } from "../../core/errors.ts";
import { type PartFile, WrongBytesError } from "./part.ts";
import type { HubFile } from "./hub_reference.ts";
import type { NamedModel } from "./registry.ts";

/** Until the hub's first answer; beyond that it counts as unreachable and the next source is tried. */
export const CONNECT_MS = 5_000;

/** Longest wait for the next bytes of a running download. */
export const STALL_MS = 30_000;

/** Downloads begun before giving up; each goes on where the one before stopped. */
const ROUNDS = 3;

export interface HubOptions {
  /** `HF_ENDPOINT`, or the public hub when undefined. */
  readonly endpoint?: string;
  readonly signal?: AbortSignal;
  readonly connectMs?: number;
  readonly stallMs?: number;
  readonly onBytes?: (bytes: number) => void;
}

/**
 * Downloads `model` through parts made by `openPart`, and returns the path of the finished file. Throws Errors that
 * say why the hub did not do, PalisadeErrors for a bad endpoint or the local disk, `signal.reason` when aborted.
 */
export async function fetchFromHub(
  model: NamedModel,
  openPart: () => Promise<PartFile>,
  options: HubOptions,
): Promise<string> {
  const hubUrl = options.endpoint === undefined ? undefined : checkedEndpoint(options.endpoint);
  for (let round = 1;; round++) {
    // Ends every request of this round, so that no connection outlives it.
    const stop = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, stop.signal]) : stop.signal;
    const patient = patientFetch(signal, options.connectMs ?? CONNECT_MS);
    let part: PartFile | undefined;
    let taken = 0;
    try {
      const url = await findUrl(model, hubUrl, patient);
      part = await openPart();
      taken = part.bytes;
      if (part.bytes < model.size) await download(url, part, patient, options);
      if (part.bytes < model.size) throw new Error(`the connection ended at byte ${part.bytes} of ${model.size}`);
      return await part.finish();
    } catch (error) {
      const wrong = error instanceof WrongBytesError;
      if (part) await (wrong || isDiskError(error) ? part.discard() : part.keep());
      options.signal?.throwIfAborted();
      // Wrong bytes of a download begun anew are the hub's; those of a resumed one may come from the old half.
      const hopeless = part === undefined || isDiskError(error) || (wrong && taken === 0);
      if (hopeless || round === ROUNDS) throw error;
    } finally {
      stop.abort();
    }
  }
}

function isDiskError(error: unknown): boolean {
  return (error as Error)?.name === "PalisadeError";
}

/** Throws PalisadeError input `hub.endpoint` for something that is no http(s) URL, or that fetch refuses. */
function checkedEndpoint(endpoint: string): string {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : undefined;
  const fine = url && /^https?:$/.test(url.protocol) && url.username === "" && url.password === "";
  if (!fine) {
    // It may hold a password.
    const given = /@/.test(endpoint) ? "an address with a user in it" : JSON.stringify(endpoint);
    throw inputError("hub.endpoint", `HF_ENDPOINT is ${given}, an http or https URL is wanted`, "HF_ENDPOINT");
  }
  return endpoint.replace(/\/+$/, "");
}

/** What the hub has in a repository now: its commit, and its files with their SHA-256. */
export async function listHub(
  repository: string,
  { endpoint, signal, connectMs = CONNECT_MS }: HubOptions,
): Promise<{ revision: string; files: HubFile[] }> {
  const hubUrl = endpoint === undefined ? undefined : checkedEndpoint(endpoint);
  const fetch = patientFetch(signal ?? new AbortController().signal, connectMs);
  const { listFiles, modelInfo } = await import("@huggingface/hub");
  const { sha } = await modelInfo({ name: repository, additionalFields: ["sha"], hubUrl, fetch });
  if (typeof sha !== "string" || !/^[0-9a-f]{7,64}$/.test(sha)) throw new Error(`it named no commit of ${repository}`);
  const files: HubFile[] = [];
  for await (const entry of listFiles({ repo: repository, revision: sha, recursive: true, hubUrl, fetch })) {
    if (entry.type === "file") files.push({ path: entry.path, size: entry.size, sha256: entry.lfs?.oid });
  }
  return { revision: sha, files };
}

/** Asks the hub where the file is; refuses at once what can't be the pinned one. */
async function findUrl(model: NamedModel, hubUrl: string | undefined, fetch: typeof globalThis.fetch): Promise<string> {
  const { fileDownloadInfo } = await import("@huggingface/hub");
  const { repository: repo, revision, path } = model.hub;
  const info = await fileDownloadInfo({ repo, revision, path, hubUrl, fetch });
  if (!info) throw new Error(`${repo} has no ${path}`);
  if (info.size !== model.size) {
    throw new WrongBytesError(`its file has ${info.size} bytes, the pinned one has ${model.size}`);
  }
  return info.url;
}

/** Downloads what `part` does not have yet. */
async function download(
  url: string,
  part: PartFile,
  fetch: typeof globalThis.fetch,
  options: HubOptions,
): Promise<void> {
  const from = part.bytes;
  // Plain HTTP rather than the hub's xet protocol: it can go on from any byte, and the hash is checked here anyway.
  const response = await fetch(url, from > 0 ? { headers: { Range: `bytes=${from}-` } } : undefined);
  if (!response.ok || !response.body) throw new Error(`it answered with HTTP status ${response.status}`);
  if (from > 0 && response.status !== 206) throw new WrongBytesError("it can't send the rest of a file");
  const reader = response.body.getReader();
  try {
    while (true) {
      const { done, value } = await withTimeout(reader.read(), options.stallMs ?? STALL_MS);
      if (done) return;
      await part.write(value);
      options.onBytes?.(part.bytes);
    }
  } finally {
    // Not awaited: a stalled connection may never say that it was cancelled.
    reader.cancel().catch(() => {});
  }
}

async function withTimeout<T>(promise: Promise<T>, ms: number): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no bytes came for ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A fetch that gives up when no answer begins within `connectMs`. */
function patientFetch(signal: AbortSignal, connectMs: number): typeof fetch {
  return async (input, init) => {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(new Error(`no answer within ${connectMs / 1000} s`)), connectMs);
    try {
      return await fetch(input, { ...init, signal: AbortSignal.any([signal, late.signal]) });
    } catch (error) {
      throw late.signal.aborted ? late.signal.reason : error;
    } finally {
      clearTimeout(timer);
    }
  };
}
