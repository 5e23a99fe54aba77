/**
 * The whole gate, in order: checks, the Deno suite with branch coverage, mutants, the smoke suites of Bun and Node.
 * The last line is `N passed, N failed`, with `, N skipped` when there are any; exit code 1 on any failure.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { runChecks } from "./check.ts";
import { killChildrenOnInterrupt, runChild } from "./child.ts";
import { coverageByGroup, type GroupCoverage, MEASURED_TESTS, MIN_BRANCHES } from "./coverage.ts";
import { parseJunit, type TestCase } from "./junit.ts";
import { runMutants } from "./mutants.ts";
import { changedFiles, repositoryFiles, ROOT } from "./repository.ts";
import { inTurns, type Turn } from "./turns.ts";
import type { SkipRecord } from "../tests/_helper/skip.ts";

const USAGE = `deno task test [--quick] [--only PATTERN] [--silence SECONDS]

  --only PATTERN     run only the tests whose name contains PATTERN (or matches /PATTERN/), no checks, no coverage
  --quick            checks and the Deno suite, without coverage, mutants and smoke suites
  --silence SECONDS  a test process that prints nothing for so long is killed and has failed (default 420)

CI=true: a test skipped because of a missing file is a failure.`;

/** Longest a whole suite may take, seconds. */
const SUITE_TIMEOUT = 2400;

interface Failure {
  readonly name: string;
  readonly reason: string;
}

interface Totals {
  passed: number;
  readonly failed: Failure[];
  readonly skipped: SkipRecord[];
}

const noTotals = (): Totals => ({ passed: 0, failed: [], skipped: [] });

const inCi = process.env["CI"] === "true" || process.env["CI"] === "1";

function heading(text: string): void {
  console.log(`\n== ${text}`);
}

function readSkips(path: string): Map<string, SkipRecord> {
  const skips = new Map<string, SkipRecord>();
  for (const line of readFileSync(path, "utf8").split("\n")) {
    if (line === "") continue;
    const record: SkipRecord = JSON.parse(line);
    skips.set(record.name, record);
  }
  return skips;
}

/** Sorts one skipped test into skipped or failed. */
function countSkip(name: string, record: SkipRecord | undefined, totals: Totals): void {
  if (record === undefined) {
    totals.failed.push({ name, reason: "did not run, or skipped without a reason (use tests/_helper/skip.ts)" });
  } else if (inCi && record.cause === "file") {
    totals.failed.push({ name, reason: `skipped in CI, where files must be there: ${record.reason}` });
  } else {
    totals.skipped.push(record);
  }
}

/** `deno test --filter` by its rule: a regular expression between slashes, else a part of the name. */
function matches(name: string, pattern: string): boolean {
  const expression = /^\/(.*)\/$/.exec(pattern);
  return expression ? new RegExp(expression[1]).test(name) : name.includes(pattern);
}

/** What had passed before a suite was killed, which leaves no report: read from its output. */
function passedLines(output: string): TestCase[] {
  // deno-lint-ignore no-control-regex
  const plain = output.replace(/\x1b\[[0-9;]*m/g, "");
  return [...plain.matchAll(/^(\S.*) \.\.\. ok \(/gm)].map(([, name]) => ({ file: "", name, outcome: "passed" }));
}

/** Drops the lines of steps that passed: there are thousands. Everything else goes on as soon as it is there. */
function withoutPassedSteps(): (part: string) => string {
  let held = "";
  return (part) => {
    const lines = (held + part).split("\n");
    const last = lines.pop()!;
    held = /^\s/.test(last) ? last : "";
    // deno-lint-ignore no-control-regex
    const shown = lines.filter((line) => !/^\s+.* \.\.\. (\x1b\[\d+m)*ok/.test(line)).map((line) => `${line}\n`);
    return shown.join("") + (held === "" ? last : "");
  };
}

/** Test files a process runs: each file has an engine of its own there, and what they hold together is limited. */
const FILES_A_PROCESS = 12;

/** The files that are not measured, a process for each portion. */
function portions(files: readonly string[]): [title: string, paths: readonly string[]][] {
  const count = Math.ceil(files.length / FILES_A_PROCESS);
  return Array.from({ length: count }, (_, i) => [
    `Deno suite, the rest, ${i + 1} of ${count}`,
    files.slice(i * FILES_A_PROCESS, (i + 1) * FILES_A_PROCESS),
  ]);
}

interface SuiteOptions {
  readonly title: string;
  /** Folders and files given to `deno test`. */
  readonly paths: readonly string[];
  readonly scratch: string;
  readonly silence: number;
  readonly only?: string;
  /** Folder for raw coverage. */
  readonly coverage?: string;
}

/** One `deno test` process; every outcome is counted from its JUnit report. */
async function runSuite(options: SuiteOptions, turn: Turn): Promise<Totals> {
  const { title, paths, silence, only, coverage } = options;
  const totals = noTotals();
  turn.write(`\n== ${title}\n`);
  if (paths.length === 0) {
    totals.failed.push({ name: title, reason: "no test files" });
    return totals;
  }
  const scratch = mkdtempSync(join(options.scratch, "suite-"));
  const report = join(scratch, "junit.xml");
  const skips = join(scratch, "skips.jsonl");
  writeFileSync(skips, "");
  const tmp = join(scratch, "tmp");
  mkdirSync(tmp);
  const shorten = withoutPassedSteps();
  const args = ["test", "-A", "--no-check", "--trace-leaks", `--junit-path=${report}`];
  if (coverage) args.push(`--coverage=${coverage}`, "--coverage-raw-data-only");
  if (only) args.push(`--filter=${only}`);
  const { code, killed, stdout } = await runChild(process.execPath, [...args, ...paths], {
    cwd: ROOT,
    env: {
      PALISADE_SKIPS: skips,
      TMPDIR: tmp,
      // Without a Vulkan driver Deno would take Mesa's emulated OpenGL, which hangs and crashes: then there is no adapter.
      DENO_WEBGPU_BACKEND: process.env["DENO_WEBGPU_BACKEND"] ?? (process.platform === "linux" ? "vulkan" : undefined),
      // The Vulkan loader complains on standard error without it.
      XDG_RUNTIME_DIR: process.env["XDG_RUNTIME_DIR"] ?? tmp,
      NO_COLOR: process.stdout.isTTY ? undefined : "1",
    },
    timeout: SUITE_TIMEOUT,
    silence,
    echo: (part) => {
      turn.write(shorten(part));
      return "";
    },
  });
  if (killed) {
    const last = stdout.trimEnd().split("\n").at(-1) ?? "";
    totals.failed.push({ name: title, reason: `killed, ${killed}; last line: ${last.trim()}` });
  }
  const all = existsSync(report) ? parseJunit(readFileSync(report, "utf8")) : passedLines(stdout);
  const cases = only ? all.filter(({ name }) => matches(name, only)) : all;
  const reasons = readSkips(skips);
  for (const { file, name, outcome } of cases) {
    if (outcome === "passed") totals.passed++;
    else if (outcome === "failed") totals.failed.push({ name, reason: file });
    else countSkip(name, reasons.get(name), totals);
  }
  if (cases.length === 0 && !only && !killed) totals.failed.push({ name: title, reason: "no test ran" });
  // A module that fails to load, or a leak outside any test, is in no test case.
  if (code !== 0 && totals.failed.length === 0) {
    totals.failed.push({ name: title, reason: `deno test ended with ${code}` });
  }
  rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
  return totals;
}

/** Bytes of memory that one suite may take beside what the machine needs. */
const MEMORY_A_SUITE = 6 * 2 ** 30;

/** Suites at once: as many as have a processor and memory, at least one. */
const LANES = Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / MEMORY_A_SUITE)));

/** Runs suites beside each other; what they print stays in order. */
async function runSuites(suites: readonly SuiteOptions[], totals: Totals): Promise<void> {
  const jobs = suites.map((suite) => (turn: Turn) => runSuite(suite, turn));
  for (const { passed, failed, skipped } of await inTurns(jobs, LANES, (text) => process.stdout.write(text))) {
    totals.passed += passed;
    totals.failed.push(...failed);
    totals.skipped.push(...skipped);
  }
}

function coverageProblem({ files, unloaded, percent }: GroupCoverage): string {
  if (files === 0) return "no such file";
  if (unloaded.length > 0) return `loaded by no test: ${unloaded.join(", ")}`;
  return `${percent.toFixed(1)} % of branches`;
}

/** Prints the table of branch coverage; one pass or failure per group. */
async function gateCoverage(folder: string, totals: Totals): Promise<void> {
  heading(`branch coverage, at least ${MIN_BRANCHES} %`);
  const output = join(folder, "lcov.info");
  const args = ["coverage", "--lcov", `--output=${output}`, folder];
  const { code, stderr, killed } = await runChild(process.execPath, args, { cwd: ROOT, timeout: 300 });
  if (code !== 0 || !existsSync(output)) {
    totals.failed.push({ name: "branch coverage", reason: `deno coverage failed: ${killed || stderr.trim()}` });
    return;
  }
  const sources = (await repositoryFiles()).filter((file) => file.endsWith(".ts"));
  for (const group of coverageByGroup(readFileSync(output, "utf8"), ROOT, sources)) {
    const share = `${group.percent.toFixed(1)} %`.padStart(7);
    const counts = `${group.taken}/${group.branches}`.padStart(9);
    const worst = group.worst ? `lowest ${group.worst.percent.toFixed(1)} % ${group.worst.file}` : "";
    console.log(`${group.ok ? "ok    " : "FAILED"} ${group.name.padEnd(28)} ${share} ${counts}  ${worst}`);
    for (const file of group.unloaded) console.log(`       loaded by no test: ${file}`);
    if (group.ok) totals.passed++;
    else totals.failed.push({ name: `coverage of ${group.name}`, reason: coverageProblem(group) });
  }
}

/** The tests must notice every wrong in `mutant_list.ts`. */
async function gateMutants(scratch: string, totals: Totals): Promise<void> {
  heading("mutants");
  if (await runMutants(scratch)) totals.passed++;
  else totals.failed.push({ name: "mutants of the core", reason: "see above" });
}

/** The run must leave the checkout as it was. */
async function gateTidiness(before: readonly string[], totals: Totals): Promise<void> {
  const left = (await changedFiles()).filter((line) => !before.includes(line));
  if (left.length === 0) totals.passed++;
  else totals.failed.push({ name: "the run leaves the checkout as it was", reason: left.join(", ") });
}

function printSummary({ passed, failed, skipped }: Totals): void {
  if (skipped.length > 0) heading("skipped");
  for (const { name, reason } of skipped) console.log(`${name}: ${reason}`);
  if (failed.length > 0) heading("failed");
  for (const { name, reason } of failed) console.log(`${name}: ${reason}`);
  const tail = skipped.length > 0 ? `, ${skipped.length} skipped` : "";
  console.log(`\n${passed} passed, ${failed.length} failed${tail}`);
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      only: { type: "string" },
      quick: { type: "boolean", default: false },
      silence: { type: "string", default: "420" },
      help: { type: "boolean", default: false },
    },
  });
  const silence = Number(values.silence);
  if (values.help || !(silence > 0)) {
    console.log(USAGE);
    return values.help ? 0 : 2;
  }
  const { only, quick } = values;
  const totals = noTotals();
  const scratch = mkdtempSync(join(tmpdir(), "palisade-test-"));
  const cleanUp = () => rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
  killChildrenOnInterrupt(cleanUp);
  const before = await changedFiles();
  try {
    if (!only) {
      heading("checks");
      for (const { name, problems } of await runChecks()) {
        if (problems.length === 0) totals.passed++;
        else totals.failed.push({ name, reason: "see above" });
      }
    }
    const base = { scratch, silence, only };
    if (only || quick) {
      await runSuites([{ title: "Deno suite", paths: ["tests/"], ...base }], totals);
    } else {
      const tests = (await repositoryFiles()).filter((file) => /^tests\/.*_test\.ts$/.test(file));
      const measured = tests.filter((file) => MEASURED_TESTS.test(file));
      const others = tests.filter((file) => !MEASURED_TESTS.test(file));
      const coverage = join(scratch, "coverage");
      await runSuites([
        { title: "Deno suite, branches counted", paths: measured, coverage, ...base },
        ...portions(others).map(([title, paths]) => ({ title, paths, ...base })),
      ], totals);
      await gateCoverage(coverage, totals);
      await gateMutants(scratch, totals);
    }
    if (!quick) {
      await runSuites([
        { title: "Bun smoke suite", paths: ["tests/smoke/bun.ts"], ...base },
        { title: "Node smoke suite", paths: ["tests/smoke/node.ts"], ...base },
      ], totals);
    }
    if (inCi) await gateTidiness(before, totals);
  } finally {
    cleanUp();
  }
  printSummary(totals);
  return totals.failed.length === 0 ? 0 : 1;
}

if (import.meta.main) {
  try {
    process.exitCode = await main();
  } catch (error) {
    console.log(error instanceof Error && "code" in error ? `${error.message}\n\n${USAGE}` : error);
    console.log("\n0 passed, 1 failed");
    process.exitCode = 2;
  }
}
