/**
 * `NAME.gguf.verified`: what a model file looked like when its SHA-256 was found to be the pinned one, as JSON with its
 * size in bytes, time of last change in whole milliseconds and digest. A file that looks different since, or has no
 * such note, has to be hashed again.
 */
import { PalisadeError } from "../../core/errors.ts";
import type { FileInfo, Host, Runtime } from "../../runtime/interface.ts";
import { writeWhole } from "../../runtime/output.ts";
import type { NamedModel } from "./registry.ts";

/** Far more than a note takes. */
const MAX_NOTE_BYTES = 4096;

/** Where the note on the file at `path` lies. */
export function noteOf(path: string): string {
  return `${path}.verified`;
}

/** Whether the file at `path` is noted as the pinned one and has not changed since. */
export async function isNoted(model: NamedModel, path: string, runtime: Runtime, host: Host): Promise<boolean> {
  const info = await host.info(path);
  if (info?.kind !== "file" || info.size !== model.size) return false;
  if ((await host.info(noteOf(path)))?.kind !== "file") return false;
  try {
    return await runtime.readText(noteOf(path), { maxBytes: MAX_NOTE_BYTES }) === textOf(model, info);
  } catch (error) {
    if (error instanceof PalisadeError) return false;
    throw error;
  }
}

/**
 * Notes that the file at `path` was the pinned one while it looked like `info`. In a folder that can't be written, the
 * file is hashed at each use.
 */
export async function noteVerified(
  model: NamedModel,
  path: string,
  info: FileInfo | undefined,
  runtime: Runtime,
): Promise<void> {
  if (info === undefined) return;
  try {
    await writeWhole(runtime, noteOf(path), new TextEncoder().encode(textOf(model, info)));
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
  }
}

/** Whole milliseconds, because not every runtime tells more. */
function textOf(model: NamedModel, info: FileInfo): string {
  return `${JSON.stringify({ size: info.size, modifiedMs: Math.floor(info.modified), sha256: model.sha256 })}\n`;
}
