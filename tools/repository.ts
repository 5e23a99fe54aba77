/** What git knows of this checkout. */
import { existsSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { runChild } from "./child.ts";

/** The checkout's root folder, absolute. */
export const ROOT: string = dirname(dirname(fileURLToPath(import.meta.url)));

/** Folders that git ignores, for a checkout without git. */
const IGNORED = /^(node_modules|dist|coverage|target|\.cache|\.git)$/;

function walk(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = folder === "" ? entry.name : `${folder}/${entry.name}`;
    if (entry.isDirectory()) return IGNORED.test(entry.name) ? [] : walk(path);
    return entry.isFile() ? [path] : [];
  });
}

/** The output of a git command in the checkout; `undefined` where git can't or won't say (an export, another owner). */
async function git(...args: string[]): Promise<string | undefined> {
  const { code, stdout } = await runChild("git", args, { cwd: ROOT, timeout: 60 });
  return code === 0 ? stdout : undefined;
}

/** Every file that is tracked, or new and not ignored, relative to the root, with `/`, sorted. */
export async function repositoryFiles(): Promise<string[]> {
  const listed = await git("ls-files", "-z", "--cached", "--others", "--exclude-standard");
  if (listed === undefined) return walk("").sort();
  const files = [...new Set(listed.split("\0"))].filter((file) => file !== "" && existsSync(join(ROOT, file)));
  return files.sort();
}

/** Lines of `git status` for what differs from the last commit; none where git can't say. */
export async function changedFiles(...paths: string[]): Promise<string[]> {
  const status = await git("status", "--porcelain", "--untracked-files=all", "--", ...paths);
  return (status ?? "").split("\n").filter((line) => line !== "");
}
