/** The Bun that npm installed. Its `bun` command is a stub when install scripts did not run, so look for the binary. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { runChild } from "./child.ts";
import { ROOT } from "./repository.ts";

/** Folders of `@oven/bun-PLATFORM-ARCH…` packages, in Deno's and in npm's layout of node_modules. */
function platformPackages(): string[] {
  const wanted = `bun-${process.platform === "win32" ? "windows" : process.platform}-${
    process.arch === "arm64" ? "aarch64" : process.arch
  }`;
  const list = (folder: string) => existsSync(folder) ? readdirSync(folder).sort() : [];
  const modules = join(ROOT, "node_modules");
  const fromNpm = list(join(modules, "@oven")).map((name) => join(modules, "@oven", name));
  const fromDeno = list(join(modules, ".deno")).filter((name) => name.startsWith("@oven+")).map((name) =>
    join(modules, ".deno", name, "node_modules", name.slice(0, name.indexOf("@", 1)).replace("+", "/"))
  );
  return [...fromNpm, ...fromDeno].filter((folder) => folder.includes(wanted));
}

/** Path of a Bun that starts on this machine: npm's, else `bun` from PATH; `undefined` when there is none. */
export async function findBun(): Promise<string | undefined> {
  const binary = process.platform === "win32" ? "bun.exe" : "bun";
  const candidates = [...platformPackages().map((folder) => join(folder, "bin", binary)), "bun"];
  for (const candidate of candidates) {
    const { code, stdout } = await runChild(candidate, ["--version"], { timeout: 30 });
    if (code === 0 && /^\d+\.\d+/.test(stdout)) return candidate;
  }
  return undefined;
}
