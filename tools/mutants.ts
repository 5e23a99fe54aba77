/**
 * Breaks the core on purpose and sees whether the tests notice. Every mutant is applied to a copy of the tree in a
 * temporary folder; the checkout is only read. The last line is `killed N/N`; exit code 1 when a mutant survives, no
 * longer fits the source, or does not load.
 */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { killChildrenOnInterrupt, runChild } from "./child.ts";
import { type Mutant, MUTANTS } from "./mutant_list.ts";
import { ROOT } from "./repository.ts";

/** What the core's tests reach: folders and files of the checkout. */
const TREE = [
  "core",
  "model",
  "runtime",
  "tests/_helper",
  "tests/data/golden",
  "deno.json",
  "package.json",
];

/** Share of each property's runs: a mutant is no needle. */
const RUNS = "0.05";

/** Longest one mutant's tests may take, seconds; a mutant that hangs is noticed. */
const TIMEOUT = 120;

/** What became of a mutant; everything but `killed` and `hangs` is a failure. */
export type Fate = "killed" | "hangs" | "SURVIVED" | "DOES NOT FIT" | "DOES NOT LOAD";

/** The source with the mutant in it, or undefined when its place is not there exactly once. */
export function mutated(source: string, { find, replace }: Mutant): string | undefined {
  const at = source.indexOf(find);
  if (at < 0 || source.indexOf(find, at + 1) >= 0) return undefined;
  return source.slice(0, at) + replace + source.slice(at + find.length);
}

/** A copy of what the core's tests need in a folder of its own, packages linked. */
function copyTree(scratch: string): string {
  const folder = mkdtempSync(join(scratch, "tree-"));
  const tests = [...new Set(MUTANTS.flatMap((mutant) => mutant.tests))].map((name) => `tests/${name}_test.ts`);
  mkdirSync(join(folder, "tests/data"), { recursive: true });
  for (const path of [...TREE, ...tests]) cpSync(join(ROOT, path), join(folder, path), { recursive: true });
  symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"), "junction");
  return folder;
}

/** Runs test files of a copy; `output` without colours. */
async function runTests(
  folder: string,
  names: readonly string[],
): Promise<{ code: number; killed: string; output: string }> {
  const files = names.map((name) => `tests/${name}_test.ts`);
  const flags = ["-A", "--no-check", "--no-lock", "--node-modules-dir=manual", "--fail-fast"];
  const { code, killed, stdout, stderr } = await runChild(process.execPath, ["test", ...flags, ...files], {
    cwd: folder,
    env: { NO_COLOR: "1", PALISADE_RUNS: RUNS },
    timeout: TIMEOUT,
  });
  return { code, killed, output: `${stdout}\n${stderr}` };
}

async function fateOf(mutant: Mutant, folder: string): Promise<Fate> {
  const path = join(folder, mutant.file), source = readFileSync(path, "utf8");
  const wrong = mutated(source, mutant);
  if (wrong === undefined) return "DOES NOT FIT";
  writeFileSync(path, wrong);
  try {
    const { code, killed, output } = await runTests(folder, mutant.tests);
    if (killed) return "hangs";
    if (code === 0) return "SURVIVED";
    return /\(uncaught error\)/.test(output) || !/\d+ failed/.test(output) ? "DOES NOT LOAD" : "killed";
  } finally {
    writeFileSync(path, source);
  }
}

/** Tries every mutant, a few at a time, in copies under `scratch`; true when all were noticed. */
export async function runMutants(scratch: string): Promise<boolean> {
  const copies = Array.from({ length: Math.min(2, availableParallelism()) }, () => copyTree(scratch));
  const whole = await runTests(copies[0], [...new Set(MUTANTS.flatMap(({ tests }) => tests))]);
  if (whole.code !== 0) {
    console.log(`The tests fail without any mutant: ${whole.killed}\n${whole.output}`);
    return false;
  }
  const waiting = [...MUTANTS];
  let noticed = 0;
  await Promise.all(copies.map(async (folder) => {
    for (let mutant = waiting.shift(); mutant; mutant = waiting.shift()) {
      const fate = await fateOf(mutant, folder);
      if (fate === "killed" || fate === "hangs") noticed++;
      console.log(`${fate.padEnd(13)} ${mutant.name} (${mutant.file})`);
    }
  }));
  console.log(`killed ${noticed}/${MUTANTS.length}`);
  return noticed === MUTANTS.length;
}

if (import.meta.main) {
  const scratch = mkdtempSync(join(tmpdir(), "palisade-mutants-"));
  const cleanUp = () => rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
  killChildrenOnInterrupt(cleanUp);
  try {
    process.exitCode = await runMutants(scratch) ? 0 : 1;
  } finally {
    cleanUp();
  }
}
