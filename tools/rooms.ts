/** Which room may import which: the table of the design, checked. */
import { readFileSync } from "node:fs";
import { builtinModules } from "node:module";
import { dirname, join, posix } from "node:path";
import ts from "typescript";
import { ROOT } from "./repository.ts";

interface Room {
  /** Other rooms, or single files of theirs, that it may import. */
  readonly imports: readonly string[];
  /** May name `node:` modules. */
  readonly node?: boolean;
  /** May name npm packages. */
  readonly npm?: boolean;
}

const PRODUCT = ["core", "wasm", "gpu", "model", "runtime", "evaluate", "cli", "web", "mod.ts"];
const EVERYTHING: Room = { imports: [...PRODUCT, "tests", "tools", "bench"], node: true, npm: true };

/** Rooms by folder (or file, for those at the top). An arrow leads to a room further up this list: none climbs. */
export const ROOMS: Readonly<Record<string, Room>> = {
  core: { imports: [] },
  runtime: { imports: ["core"], node: true, npm: true },
  wasm: { imports: ["core", "runtime"] },
  gpu: { imports: ["core", "runtime"] },
  model: { imports: ["core", "runtime", "wasm", "gpu"], npm: true },
  evaluate: { imports: ["core", "model", "runtime"], npm: true },
  "mod.ts": { imports: ["core", "wasm", "gpu", "model", "runtime", "evaluate"] },
  web: { imports: ["mod.ts", "core", "model", "runtime", "evaluate"], npm: true },
  cli: { imports: PRODUCT, node: true, npm: true },
  tests: EVERYTHING,
  tools: EVERYTHING,
  bench: EVERYTHING,
};

const BUILTINS = new Set(builtinModules);

/** Every module named in a source text by import, export … from, import() or import type. */
export function importsOf(text: string): string[] {
  return ts.preProcessFile(text, true, true).importedFiles.map(({ fileName }) => fileName);
}

function roomOf(file: string): string {
  return file.includes("/") ? file.slice(0, file.indexOf("/")) : file;
}

/** What is wrong with one import, or nothing. */
export function importProblem(file: string, specifier: string): string | undefined {
  const from = roomOf(file);
  const room = ROOMS[from];
  if (room === undefined) return `${file}: no room is called ${from} (tools/rooms.ts)`;
  if (!specifier.startsWith(".")) {
    if (/^(https?|jsr|npm|data|file):/.test(specifier)) return `${file}: ${specifier} is no bare npm name`;
    if (specifier.startsWith("node:")) return room.node ? undefined : `${file}: ${from}/ may not use ${specifier}`;
    if (BUILTINS.has(specifier)) return `${file}: write node:${specifier}`;
    return room.npm ? undefined : `${file}: ${from}/ may not import the package ${specifier}`;
  }
  const target = posix.normalize(posix.join(dirname(file), specifier));
  if (target.startsWith("..")) return `${file}: ${specifier} leaves the project`;
  const to = roomOf(target);
  if (to === from || room.imports.includes(to) || room.imports.includes(target)) return undefined;
  return `${file}: ${from} may not import ${target}`;
}

/** Breaches of the table in `sources`, paths relative to the root. */
export function roomProblems(sources: readonly string[]): string[] {
  const problems: string[] = [];
  for (const file of sources) {
    for (const specifier of importsOf(readFileSync(join(ROOT, file), "utf8"))) {
      const problem = importProblem(file, specifier);
      if (problem) problems.push(problem);
    }
  }
  return problems;
}
