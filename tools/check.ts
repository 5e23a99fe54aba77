/** Everything that can be said about the tree without running it. One line each, details where it fails. */
import process from "node:process";
import { staleShaders } from "./build_shaders.ts";
import { killChildrenOnInterrupt, runChild } from "./child.ts";
import { staleDocs } from "./docs.ts";
import { hygieneProblems } from "./hygiene.ts";
import { linkProblems } from "./links.ts";
import { changedFiles, repositoryFiles, ROOT } from "./repository.ts";
import { roomProblems } from "./rooms.ts";

export interface CheckResult {
  readonly name: string;
  /** Empty when the check passed. */
  readonly problems: readonly string[];
}

/** Longest a single check may take, seconds. */
const CHECK_TIMEOUT = 300;

/** Rooms that must compile with no runtime's names at all. */
export const PURE_CONFIG = "tools/tsconfig.pure.json";

async function command(args: readonly string[], program: string = process.execPath): Promise<string[]> {
  const { code, stdout, stderr, killed } = await runChild(program, args, {
    cwd: ROOT,
    env: { NO_COLOR: "1" },
    timeout: CHECK_TIMEOUT,
  });
  if (code === 0) return [];
  const text = `${stdout}\n${stderr}`.trim();
  return [...text.split("\n").slice(0, 60), killed].filter((line) => line !== "");
}

/** Runs the pinned `tsc` of node_modules under Deno. */
function tsc(config: string): Promise<string[]> {
  return command(["run", "-A", "node_modules/typescript/bin/tsc", "-p", config, "--noEmit", "--pretty", "false"]);
}

/** Loaded when it is needed: typedoc is large. */
async function undocumented(): Promise<string[]> {
  return (await (await import("./reference.ts")).undocumentedNames()).map((name) => `${name} has no doc comment`);
}

/** Deno adds to its lock file as it starts; in CI that means that the committed one lacked something. */
async function lockfileProblems(): Promise<string[]> {
  return process.env["CI"] === "true" ? await changedFiles("deno.lock") : [];
}

/** Runs every check in order, printing one line for each. */
export async function runChecks(): Promise<CheckResult[]> {
  const files = await repositoryFiles();
  const sources = files.filter((file) => file.endsWith(".ts") && !file.endsWith(".d.ts"));
  const checks: [string, () => string[] | Promise<string[]>][] = [
    ["deno fmt", () => command(["fmt", "--check"])],
    ["deno lint", () => command(["lint"])],
    ["deno check", () => command(["check", "--quiet", ...sources])],
    ["portable types (tsc)", () => tsc("tsconfig.json")],
    ["pure rooms use no runtime names (tsc)", () => tsc(PURE_CONFIG)],
    ["rooms import only what they may", () => roomProblems(sources)],
    ["public names are documented (typedoc)", undocumented],
    ["links in Markdown", () => linkProblems(files)],
    [
      "the stages' texts are those of their files",
      () => staleShaders().map((folder) => `${folder}/shaders.ts is stale`),
    ],
    [
      "tables and man pages are those of the program",
      async () => (await staleDocs()).map((path) => `${path} is stale: deno task docs`),
    ],
    ...hygieneProblems(files),
    ["deno.lock is complete", lockfileProblems],
  ];
  const results: CheckResult[] = [];
  for (const [name, check] of checks) {
    let problems: string[];
    try {
      problems = await check();
    } catch (error) {
      problems = [String(error)];
    }
    console.log(`${problems.length === 0 ? "ok    " : "FAILED"} ${name}`);
    for (const problem of problems) console.log(`       ${problem}`);
    results.push({ name, problems });
  }
  return results;
}

if (import.meta.main) {
  killChildrenOnInterrupt();
  const failed = (await runChecks()).filter(({ problems }) => problems.length > 0);
  process.exitCode = failed.length === 0 ? 0 : 1;
}
