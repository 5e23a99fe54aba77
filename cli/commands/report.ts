/** `palisade report`: what a results file says, as a table, CSV, and one HTML file. */
import { compareTo } from "../../evaluate/results/against.ts";
import { settingOf } from "../../evaluate/report/charts.ts";
import { cellsOf, intervalText, PAGE, reportHtml } from "../../evaluate/report/html.ts";
import { readResults, type ResultLine } from "../../evaluate/results/results.ts";
import {
  CSV_TABLE,
  csvOf,
  groupBy,
  type Row,
  SOLVED,
  summarise,
  type Summary,
} from "../../evaluate/results/summary.ts";
import { inputError } from "../../core/errors.ts";
import { hostOf } from "../../runtime/host.ts";
import { checkOutputs } from "../../runtime/output.ts";
import { command } from "../command.ts";
import { EXIT, type Io } from "../io.ts";
import { JSON_SWITCH, printJson } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { columns, padLeft, padRight } from "../print/terminal.ts";
import { outputsOf, writeText } from "../outputs.ts";
import { policyWords } from "../words.ts";

const OPTIONS = {
  html: { value: "file", help: "write charts and shaded contexts into one HTML file" },
  csv: { value: "file", help: "write the table as CSV" },
  sample: { value: "task#n", help: "whose context to show in HTML, e.g. niah_single_1#1" },
  against: {
    value: "policy",
    help: "print paired differences from that policy instead of from the full cache",
    words: policyWords,
    here: "policies",
  },
  ...JSON_SWITCH,
} satisfies OptionTable;

/** `palisade report`. */
export const reportCommand = command({
  argument: "<results...>",
  files: true,
  options: OPTIONS,
  run: report,
});

/** Runs the command; returns the exit code. Files are taken together, one line per id. */
async function report(options: Values<typeof OPTIONS>, io: Io, paths: readonly string[]): Promise<number> {
  await checkOutputs(
    io.runtime,
    outputsOf([["--csv", options.csv, CSV_TABLE], ["--html", options.html, PAGE]]),
    paths.map((path) => ({ path, what: "results" })),
  );
  const byId = new Map<string, ResultLine>();
  for (const path of await eachOnce(paths, io)) {
    const { lines, torn } = await readResults(io.runtime, path);
    if (torn) io.err(`palisade: the last line of ${path} is torn and left out; palisade eval mends it\n`);
    for (const line of lines) if (!byId.has(line.id)) byId.set(line.id, line);
  }
  if (byId.size === 0) throw inputError("results.empty", `No results in ${paths.join(", ")} yet`, paths[0]);
  const summary = summarise([...byId.values()]);
  refuseUnknownSample(summary, options.sample);
  refuseUnknownPolicy(summary, options.against);
  if (options.csv !== undefined) await writeText(io, options.csv, csvOf(summary.rows));
  if (options.html !== undefined) {
    const source = paths.map(baseName).join(", ");
    await writeText(io, options.html, await reportHtml(summary, { sample: options.sample, source }));
  }
  if (options.json) printJson(io, "report", plainReport(summary, options.against));
  else io.out(options.against === undefined ? reportTables(summary) : againstTables(summary, options.against));
  return EXIT.ok;
}

function plainReport({ rows, solved, lines, superseded }: Summary, against?: string) {
  if (against !== undefined) return { against, rows: compareTo(lines, against) };
  return { rows, solved, cells: lines.length, superseded };
}

/** A file named twice is read once, and that is said. */
async function eachOnce(paths: readonly string[], { runtime, err }: Io): Promise<string[]> {
  const seen = new Map<string, string>();
  for (const path of paths) {
    const file = await hostOf(runtime, "report").identity(path) ?? path, first = seen.get(file);
    if (first !== undefined) err(`palisade: ${path} is ${first === path ? "named twice" : first}: it is read once\n`);
    else seen.set(file, path);
  }
  return [...seen.values()];
}

function baseName(path: string): string {
  return path.split(/[\\/]/).at(-1)!;
}

function refuseUnknownSample({ lines }: Summary, sample: string | undefined): void {
  if (sample === undefined) return;
  const names = new Set(lines.filter((line) => line.shading).map((line) => `${line.task}#${line.sample + 1}`));
  if (names.has(sample)) return;
  const message = `No context is stored for "${sample}": there are ${[...names].join(", ") || "none"}`;
  throw inputError("report.sample", message, "--sample");
}

function refuseUnknownPolicy({ lines }: Summary, policy: string | undefined): void {
  if (policy === undefined) return;
  const names = new Set(lines.map((line) => line.asked.policy));
  if (names.has(policy)) return;
  throw inputError("report.against", `No results of "${policy}": there are ${[...names].join(", ")}`, "--against");
}

/** Width of the policy's column; longer names have a line to themselves, and the table fits 80 columns. */
const NAME = 25;

function reportTables({ rows, solved, superseded, lines }: Summary): string {
  let out = "";
  for (const [setting, some] of groupBy(rows, settingOf)) {
    for (const [task, of] of groupBy(some, (row) => row.task)) out += `${blockOf(setting, task, of)}\n`;
  }
  out += "loss: full − score, with its paired bootstrap interval; held, lost: of the\n" +
    "samples that the full cache gets partly right; acc.: scores above the full\n" +
    "cache's, counted apart. KL divergence, bytes and times: --csv, --html.\n";
  out += `solved by the full cache (mean ≥ ${SOLVED.score}, n ≥ ${SOLVED.samples}): ${
    solved.join(",\n  ") || "none yet"
  }\n`;
  out += `${lines.length} cells` +
    `${superseded > 0 ? `; ${superseded} lines were measured again later and are left out` : ""}\n`;
  return out;
}

/** One task in one setting: a policy and budget a line. */
function blockOf(setting: string, task: string, rows: readonly Row[]): string {
  const title = task === "all" || task === "solved" ? `mean over ${task} tasks` : task;
  const head = rowText("policy", ["keep", "n", "score", "loss", "95 %", "held", "lost", "acc."]);
  const body = rows.map((row) => {
    const [, policy, keep, n, score, , ...rest] = cellsOf(row);
    return rowText(policy, [keep, n, score, ...rest.slice(0, 5)]);
  });
  return `${setting}: ${title}\n${head}${body.join("")}`;
}

const WIDTHS = [6, 5, 6, 6, 14, 5, 5, 5];

function rowText(name: string, cells: readonly string[]): string {
  const own = columns(name) > NAME ? `${name}\n${" ".repeat(NAME)}` : padRight(name, NAME);
  return `${own}${cells.map((cell, i) => padLeft(cell, WIDTHS[i])).join("")}\n`;
}

/** `--against`: every other policy on the samples that both have. */
function againstTables({ lines }: Summary, policy: string): string {
  let out = "";
  for (const [setting, some] of groupBy(compareTo(lines, policy), settingOf)) {
    for (const [task, of] of groupBy(some, (row) => row.task)) {
      out += `${setting}: ${task === "all" ? "mean over all tasks" : task}\n`;
      out += rowText("policy", ["keep", "n", "score", "diff.", "95 %", "more", "less"]);
      for (const row of of) {
        out += rowText(row.policy, [
          ...[row.keep, String(row.samples), row.score.toFixed(1), row.difference.toFixed(1)],
          ...[intervalText(row.interval), String(row.better), String(row.worse)],
        ]);
      }
      out += "\n";
    }
  }
  return out + `diff.: score − that of ${policy} on the same samples, same budget, with its\n` +
    "paired bootstrap interval; more, less: samples with a higher, a lower score.\n";
}
