/**
 * Models fetched by reference: a note per reference (`hub/OWNER--REPOSITORY--QUANT.json` in the model folder) with the
 * files it stood for when it was first fetched, so that the same name means the same bytes from then on, offline too.
 */
import { PalisadeError } from "../../core/errors.ts";
import type { Host, Runtime } from "../../runtime/interface.ts";
import { writeWhole } from "../../runtime/output.ts";
import type { HubReference } from "./hub_reference.ts";
import type { NamedModel } from "./registry.ts";

const FOLDER = "hub";
/** A model of a thousand parts. */
const MAX_NOTE_BYTES = 1 << 20;

/** A reference and its files, in order. */
export interface FetchedModel {
  readonly name: string;
  readonly files: readonly NamedModel[];
}

function notePath(host: Host, folder: string, { repository, quant }: Pick<HubReference, "repository" | "quant">) {
  return host.join(folder, FOLDER, `${[repository.replace("/", "--"), ...(quant ? [quant] : [])].join("--")}.json`);
}

/** What a reference stood for; undefined when it was never fetched, or its note can't be read. */
export async function readFetched(
  reference: HubReference,
  runtime: Runtime,
  host: Host,
  folder: string,
): Promise<FetchedModel | undefined> {
  return await readNote(notePath(host, folder, reference), runtime, host);
}

/** Every reference fetched so far, by name. */
export async function listFetched(runtime: Runtime, host: Host, folder: string): Promise<FetchedModel[]> {
  const names = (await host.list(host.join(folder, FOLDER))).filter((name) => name.endsWith(".json")).sort();
  const notes = await Promise.all(names.map((name) => readNote(host.join(folder, FOLDER, name), runtime, host)));
  return notes.filter((note) => note !== undefined);
}

/** Written whole: a note is there or not. */
export async function writeFetched(
  reference: HubReference,
  model: FetchedModel,
  runtime: Runtime,
  host: Host,
  folder: string,
): Promise<void> {
  await host.makeFolder(host.join(folder, FOLDER));
  const text = `${JSON.stringify(model, null, 2)}\n`;
  await writeWhole(runtime, notePath(host, folder, reference), new TextEncoder().encode(text));
}

/** Forgets what a reference stood for. */
export async function removeFetched(reference: HubReference, host: Host, folder: string): Promise<void> {
  await host.remove(notePath(host, folder, reference));
}

async function readNote(path: string, runtime: Runtime, host: Host): Promise<FetchedModel | undefined> {
  if ((await host.info(path))?.kind !== "file") return undefined;
  try {
    const note: unknown = JSON.parse(await runtime.readText(path, { maxBytes: MAX_NOTE_BYTES }));
    return isFetched(note) ? note : undefined;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof PalisadeError) return undefined;
    throw error;
  }
}

function isFetched(note: unknown): note is FetchedModel {
  const { name, files } = (note ?? {}) as Partial<FetchedModel>;
  return typeof name === "string" && Array.isArray(files) && files.length > 0 && files.every(isNamedModel);
}

/** The file's name is checked, since it becomes a path. */
function isNamedModel(value: unknown): value is NamedModel {
  const { file, size, sha256, hub } = (value ?? {}) as Partial<NamedModel>;
  return typeof file === "string" && /^[\w.-]+\.gguf$/i.test(file) && Number.isSafeInteger(size) &&
    typeof sha256 === "string" && /^[0-9a-f]{64}$/.test(sha256) && typeof hub?.repository === "string" &&
    typeof hub.revision === "string" && typeof hub.path === "string";
}
