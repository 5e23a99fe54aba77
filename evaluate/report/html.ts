/** The report as one HTML file without scripts: table, charts and shaded contexts. */
import type { Interval } from "../results/bootstrap.ts";
import { type Chart, chartsOf, drawChart, settingOf } from "./charts.ts";
import { escapeHtml } from "./escape.ts";
import type { ResultLine } from "../results/results.ts";
import { legendHtml, SHADING_CSS, shadingHtml } from "./shading.ts";
import { kindByStart, type OutputKind } from "../../runtime/output.ts";
import { groupBy, type Row, SOLVED, type Summary } from "../results/summary.ts";

const CSS = `body{font:16px/1.4 sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.15em .7em;border-bottom:1px solid #ddd}
td:nth-child(n+4),th:nth-child(n+4){text-align:right}figure{margin:2em 0;overflow-x:auto}figcaption{max-width:50em}
svg{display:block}summary{cursor:pointer}code{background:#f3f3f3}
${SHADING_CSS}`;

export interface HtmlOptions {
  /** Names the sample whose contexts are shown, `task#number` from 1; the first with tokens when absent. */
  readonly sample?: string;
  /** Where the lines come from. */
  readonly source: string;
}

/** @throws PalisadeError resources `report.vega` as `drawChart`. */
export async function reportHtml(summary: Summary, options: HtmlOptions): Promise<string> {
  const charts = await Promise.all(chartsOf(summary.rows, summary.lines).map(figureOf));
  return page(
    "what eviction costs",
    `<h1>What eviction costs</h1>\n${introduction(summary, options.source)}\n${charts.join("\n")}\n` +
      `<h2>Scores</h2>\n${tables(summary.rows)}\n${contexts(summary.lines, options.sample)}`,
  );
}

const HEAD_START = `<!doctype html>\n<html lang="en"><head><meta charset="utf-8">` +
  `<meta name="viewport" content="width=device-width"><title>palisade: `;

/** A file that {@link page} may take the place of. */
export const PAGE: OutputKind = kindByStart("a page of palisade", [HEAD_START]);

/** A whole page around `body`; its title begins with `palisade: `. */
export function page(title: string, body: string): string {
  return `${HEAD_START}${escapeHtml(title)}</title>\n` +
    `<style>${CSS}</style></head><body>\n${body}\n</body></html>\n`;
}

async function figureOf(chart: Chart): Promise<string> {
  const svg = (await drawChart(chart)).replace("<svg ", `<svg role="img" aria-label="${escapeHtml(chart.title)}" `);
  return `<figure class="chart"><h2>${escapeHtml(chart.title)}</h2>\n${svg}\n` +
    `<figcaption>${escapeHtml(chart.caption)}</figcaption></figure>`;
}

function introduction({ lines, solved, superseded }: Summary, source: string): string {
  const versions = [
    ...new Set(lines.map(({ engines }) => `palisade ${engines.palisade}, ${engines.backend}, ${engines.dense}`)),
  ];
  const facts = [
    `${lines.length} cells from ${source}`,
    ...(superseded > 0 ? [`${superseded} lines measured again later were left out`] : []),
    `seeds ${[...new Set(lines.map(({ seed }) => seed))].join(", ")}`,
    ...versions,
    `solved by the full cache (mean ≥ ${SOLVED.score} on ≥ ${SOLVED.samples} samples): ${
      solved.join(", ") || "none yet"
    }`,
  ];
  return `<ul>${facts.map((fact) => `<li>${escapeHtml(fact)}</li>`).join("")}</ul>`;
}

const HEAD = [
  "task",
  "policy",
  "keep",
  "n",
  "score",
  "full",
  "loss",
  "95 %",
  "held",
  "lost",
  "accidental",
  "KL, nats",
  "MB",
  "peak",
  "evict, ms",
];

function tables(rows: readonly Row[]): string {
  const parts = [...groupBy(rows, settingOf)].map(([setting, some]) => {
    const body = some.map((row) => `<tr>${cellsOf(row).map((cell) => `<td>${escapeHtml(cell)}</td>`).join("")}</tr>`);
    const head = HEAD.map((name) => `<th>${name}</th>`).join("");
    return `<h3>${escapeHtml(setting)}</h3>\n<table><thead><tr>${head}</tr></thead>\n<tbody>${
      body.join("\n")
    }</tbody></table>`;
  });
  return `${
    parts.join("\n")
  }\n<p>loss: full − score, with its 95 % paired bootstrap interval. Of the samples the full ` +
    `cache gets at least partly right, <em>held</em> have the same score and <em>lost</em> a lower one; ` +
    `<em>accidental</em> ones score higher than the full cache and count for neither. MB: keys and values that stay; peak: the most of ` +
    `them that a reading layer by layer holds; evict: scoring and selecting, the middle one of the samples.</p>`;
}

/** `low … high`, or a dash where there are too few samples. */
export function intervalText(interval: Interval | undefined): string {
  return interval ? `${interval.low.toFixed(1)} … ${interval.high.toFixed(1)}` : "–";
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toPrecision(3);
}

/** A row's cells as people read them, in the order of the table's head. */
export function cellsOf(row: Row): string[] {
  const { interval } = row;
  return [
    row.task,
    row.policy,
    row.keep,
    String(row.samples),
    row.score.toFixed(1),
    row.full.toFixed(1),
    row.loss.toFixed(1),
    intervalText(interval),
    String(row.held),
    String(row.lost),
    String(row.accidental),
    row.kl === 0 ? "0" : row.kl.toPrecision(2),
    megabytes(row.live),
    megabytes(row.peak),
    row.evict.toFixed(row.evict < 10 ? 1 : 0),
  ];
}

function contexts(lines: readonly ResultLine[], wanted: string | undefined): string {
  const shaded = lines.filter(({ shading }) => shading !== undefined);
  const name = (line: ResultLine) => `${line.task}#${line.sample + 1}`;
  const chosen = wanted ?? (shaded[0] && name(shaded[0]));
  const some = shaded.filter((line) => name(line) === chosen && line.bytes.live < line.bytes.full);
  if (some.length === 0) return "";
  const details = some.map((line, i) => {
    const title = `${settingOf({ ...line, model: line.model.name })}: ${line.asked.policy} ${line.asked.keep}, score ${
      line.score.toFixed(0)
    }`;
    return `<details${i < 3 ? " open" : ""}><summary>${escapeHtml(title)}</summary>\n${shadingHtml(line.shading!)}\n` +
      `<p>${escapeHtml(line.question)}<br>answer: <code>${escapeHtml(line.answer)}</code>` +
      `, full cache: <code>${escapeHtml(line.full.answer)}</code></p></details>`;
  });
  return `<h2>What is kept of ${escapeHtml(chosen)}</h2>\n${legendHtml(some[0].shading!.heads)}\n${details.join("\n")}`;
}
