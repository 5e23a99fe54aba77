/** `palisade report`: what a results file says, as a table, CSV, and one HTML file. */
import Table from "cli-table3";
import { settingOf } from "../evaluate/charts.ts";
import { cellsOf, reportHtml } from "../evaluate/report_html.ts";
import { readResults } from "../evaluate/results.ts";
import { csvOf, groupBy, SOLVED, summarise, type Summary } from "../evaluate/summary.ts";
import { inputError } from "../core/errors.ts";
import { EXIT, type Io } from "./io.ts";

export interface ReportCommand {
  readonly html?: string;
  readonly csv?: string;
  readonly sample?: string;
}

/** Runs the command; returns the exit code. */
export async function report(path: string, command: ReportCommand, io: Io): Promise<number> {
  const { lines, torn } = await readResults(io.runtime, path);
  if (torn) io.err(`palisade: the last line of ${path} is torn and left out; palisade eval mends it\n`);
  if (lines.length === 0) throw inputError("results.empty", `No results in ${path} yet`, path);
  const summary = summarise(lines);
  refuseUnknownSample(summary, command.sample);
  if (command.csv !== undefined) await writeText(command.csv, csvOf(summary.rows), io);
  if (command.html !== undefined) {
    await writeText(command.html, await reportHtml(summary, { sample: command.sample, source: baseName(path) }), io);
  }
  io.out(reportTables(summary));
  return EXIT.ok;
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

export async function writeText(path: string, text: string, { runtime }: Io): Promise<void> {
  const sink = await runtime.host!.create(path);
  try {
    await sink.write(new TextEncoder().encode(text));
  } finally {
    await sink.close();
  }
}

function reportTables({ rows, solved, superseded }: Summary): string {
  let out = "";
  for (const [setting, some] of groupBy(rows, settingOf)) {
    const table = new Table({
      head: ["task", "policy", "keep", "n", "score", "full", "loss", "95 %", "held", "lost", "acc.", "KL"],
      style: { head: [], border: [], compact: true },
      colAligns: ["left", "left", "right", ...new Array(9).fill("right")],
    });
    some.forEach((row) => table.push(cellsOf(row)));
    out += `${setting}\n${table.toString()}\n`;
  }
  out += "loss: full − score with its paired bootstrap interval; acc.: scores above the full cache's, counted apart\n";
  out += `solved by the full cache (mean ≥ ${SOLVED.score}, n ≥ ${SOLVED.samples}): ${
    solved.join(", ") || "none yet"
  }\n`;
  if (superseded > 0) out += `${superseded} lines were measured again later and are left out\n`;
  return out;
}
