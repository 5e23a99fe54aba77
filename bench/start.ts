/**
 * How long the command line takes to start, and how large its files are: `deno task bench start [--runs 20]`. Compiles the
 * binary and packs the package; then the programs take turns.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { findBun } from "../tools/bun.ts";
import { compileWithBun } from "../tools/compile.ts";
import { ROOT } from "../tools/repository.ts";

const ASKED = [["--version"], ["--help"], ["ask", "--help"]];

const { values } = parseArgs({ options: { runs: { type: "string", default: "20" } } });
const folder = mkdtempSync(join(tmpdir(), "palisade-start-")), binary = join(folder, "palisade");
try {
  const problem = await compileWithBun(binary);
  if (problem !== undefined) throw new Error(problem);
  const tarball = packed();
  const programs = {
    "Bun's binary": [binary],
    "sources, Deno": [process.execPath, "run", "-A", join(ROOT, "cli/main.ts")],
    "sources, Bun": [(await findBun())!, "run", join(ROOT, "cli/main.ts")],
    "package, Node": ["node", join(ROOT, "dist/cli/main.js")],
  };
  console.log(`| median (least) of ${values.runs}, ms | ${ASKED.map((each) => `\`${each.join(" ")}\``).join(" | ")} |`);
  console.log(`| --- |${" ---: |".repeat(ASKED.length)}`);
  const times = measure(Object.values(programs), Number(values.runs));
  Object.keys(programs).forEach((name, i) => console.log(`| ${name} | ${times[i].map(shown).join(" | ")} |`));
  const megabytes = (path: string) => `${(statSync(path).size / 1e6).toFixed(1)} MB`;
  console.log(`\nBinary: ${megabytes(binary)}. Packed package: ${megabytes(tarball)}.`);
} finally {
  rmSync(folder, { recursive: true });
}

/** The packed package, as npm would send it. */
function packed(): string {
  const { status } = spawnSync("npm", ["pack", "--silent", `--pack-destination=${folder}`], { cwd: ROOT });
  if (status !== 0) throw new Error("npm pack failed");
  return join(folder, readdirSync(folder).find((name) => name.endsWith(".tgz"))!);
}

/** Milliseconds of every run, `[program][asked]`; programs take turns, and the first turn warms up. */
function measure(programs: readonly string[][], runs: number): number[][][] {
  const times = programs.map(() => ASKED.map((): number[] => []));
  for (let run = 0; run <= runs; run++) {
    programs.forEach(([program, ...before], p) => {
      ASKED.forEach((asked, a) => {
        const begun = performance.now();
        const { status } = spawnSync(program, [...before, ...asked]);
        if (status !== 0) throw new Error(`${program} ${asked.join(" ")} ended with ${status}`);
        if (run > 0) times[p][a].push(performance.now() - begun);
      });
    });
  }
  return times;
}

function shown(times: readonly number[]): string {
  const sorted = [...times].sort((a, b) => a - b);
  return `${Math.round(sorted[Math.floor(sorted.length / 2)])} (${Math.round(sorted[0])})`;
}
