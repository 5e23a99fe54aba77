/** What must not lie around when the process ends before its work does: temporary files and folders, lock files. */
import { rmSync } from "node:fs";
import process from "node:process";

const paths = new Set<string>();

/** Has the file or folder at `path` removed when the process exits, until {@link forgetTemporary}. */
export function noteTemporary(path: string): void {
  if (paths.size === 0) process.once("exit", removeLeftovers);
  paths.add(path);
}

/** Somebody removed or renamed it. */
export function forgetTemporary(path: string): void {
  if (paths.delete(path) && paths.size === 0) process.removeListener("exit", removeLeftovers);
}

/** Removes what is still there, at once; never throws. Exiting calls it; who ends the process by a signal calls it. */
export function removeLeftovers(): void {
  for (const path of paths) {
    try {
      rmSync(path, { recursive: true, force: true });
    } catch {
      // Nobody is left to be told.
    }
  }
}
