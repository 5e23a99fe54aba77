/**
 * Builds `dist/`: the TypeScript compiler, then the files that are no TypeScript but are read at run time, at the same
 * place relative to the code. Plain JavaScript, because Node 20 runs it (`npm run build`, `npm pack`).
 */
import { spawnSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

/** Folders with files to copy, and which of them. */
const ASSETS = [
  { folder: "wasm", wanted: /\.wasm$/ },
  { folder: "gpu", wanted: /\.wgsl$/ },
  { folder: "core", wanted: /\.(bin|json)$/ },
  { folder: "cli/commands/demo_texts", wanted: /\.(txt|md)$/ },
  { folder: "cli/schema", wanted: /\.json$/ },
  { folder: "model/gate/shipped", wanted: /\.safetensors$/ },
];

rmSync(join(ROOT, "dist"), { recursive: true, force: true });
const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin/tsc");
const { status } = spawnSync(process.execPath, [tsc, "-p", join(ROOT, "tsconfig.json")], { stdio: "inherit" });
if (status !== 0) process.exit(status ?? 1);

for (const { folder, wanted } of ASSETS) {
  if (!existsSync(join(ROOT, folder))) continue;
  const keep = (path) => !/[\\/](target|node_modules)$/.test(path) && (!/\.\w+$/.test(path) || wanted.test(path));
  cpSync(join(ROOT, folder), join(ROOT, "dist", folder), { recursive: true, filter: keep });
}
const command = join(ROOT, "dist/cli/main.js");
if (existsSync(command)) chmodSync(command, 0o755);
