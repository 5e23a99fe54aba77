/** What git knows of this checkout. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { runChild } from "./child.ts";

/** The checkout's root folder, absolute. */
export const ROOT: string = dirname(dirname(fileURLToPath(import.meta.url)));

/** Every file that is tracked, or new and not ignored, relative to the root, with `/`, sorted. */
export async function repositoryFiles(): Promise<string[]> {
  const args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
  const { code, stdout, stderr, killed } = await runChild("git", args, { cwd: ROOT, timeout: 60 });
  if (code !== 0) throw new Error(`git ls-files failed: ${killed || stderr}`);
  const files = [...new Set(stdout.split("\0"))].filter((file) => file !== "" && existsSync(join(ROOT, file)));
  return files.sort();
}
