/**
 * The report's charts, as Vega-Lite specifications drawn to SVG text when the report is made. The page needs no script
 * and no network then. Vega is an optional package: it is only loaded here.
 */
import type { TopLevelSpec } from "vega-lite";
import { option, resourceError } from "../../core/errors.ts";
import { mean } from "../results/bootstrap.ts";
import type { ResultLine } from "../results/results.ts";
import { caseKey, groupBy, protocolOf, type Row } from "../results/summary.ts";

export interface Chart {
  readonly title: string;
  /** What is to be seen, in a sentence or two. */
  readonly caption: string;
  readonly spec: TopLevelSpec;
}

const CONFIG = { font: "sans-serif", view: { stroke: "#ddd" }, axis: { labelLimit: 220 }, legend: { labelLimit: 260 } };
const COMMON = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", background: "white", config: CONFIG };

/** Colours of policies: twenty, after which they come again. */
const PALETTE = { scheme: "tableau20" } as const;

/** Expression that breaks a label at its blanks. */
const BROKEN = "split(datum.label, ' ')";

/** All charts the rows have data for. */
export function chartsOf(rows: readonly Row[], lines: readonly ResultLine[]): Chart[] {
  return [budgetChart(rows), byteChart(rows, lines), taskChart(rows), headChart(lines)].filter((chart) =>
    chart !== undefined
  );
}

/**
 * SVG text of one chart.
 * @throws PalisadeError resources `report.vega` when Vega is not installed.
 */
export async function drawChart({ spec }: Chart): Promise<string> {
  const { vega, lite } = await loadVega();
  const view = new vega.View(vega.parse(lite.compile(spec).spec), { renderer: "none", logLevel: vega.Error });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}

async function loadVega() {
  try {
    const [vega, lite] = await Promise.all([import("vega"), import("vega-lite")]);
    return { vega, lite };
  } catch (cause) {
    const message = "Can't draw charts: install vega@6.4.0 and vega-lite@6.5.0 beside palisade";
    throw resourceError("report.vega", message, option("html"), cause);
  }
}

/** `model, 1024 tokens, query-aware`. */
export function settingOf({ model, length, protocol }: Pick<Row, "model" | "length" | "protocol">): string {
  const parts = [model, length === null ? "texts as they are" : `${length} tokens`];
  return [...parts, ...(protocol === "context-first" ? [] : [protocol])].join(", ");
}

/** Rows of the mean over all tasks, or of the only task there is. */
function overall(rows: readonly Row[]): Row[] {
  return [...groupBy(rows, settingOf).values()].flatMap((setting) => {
    const all = setting.filter(({ task }) => task === "all");
    return all.length > 0 ? all : setting;
  });
}

function percentKept(row: Row): number {
  return 100 * row.bytes;
}

function budgetChart(rows: readonly Row[]): Chart | undefined {
  const values = overall(rows).filter((row) => row.bytes < 1).map((row) => ({
    setting: settingOf(row),
    policy: row.policy,
    kept: percentKept(row),
    score: row.score,
    full: row.full,
    low: row.full - (row.interval?.high ?? row.loss),
    high: row.full - (row.interval?.low ?? row.loss),
  }));
  const x = {
    field: "kept",
    type: "quantitative",
    title: "kept share of the cache, %",
    scale: { zero: true },
  } as const;
  const color = { field: "policy", type: "nominal", title: "policy", sort: null, scale: PALETTE } as const;
  // Where colours are much alike the points' shapes differ.
  const shape = { field: "policy", type: "nominal", title: "policy", sort: null } as const;
  const y = { field: "score", type: "quantitative", title: "score", scale: { domain: [0, 100], clamp: true } } as const;
  return {
    title: "Score against budget",
    caption: "Mean score over all tasks. Bars: 95 % paired bootstrap interval of the loss against the full cache, " +
      "around the policy's score. Grey line: the full cache.",
    spec: {
      ...COMMON,
      data: { values },
      facet: { field: "setting", type: "nominal", title: null, columns: 2 },
      columns: 2,
      spec: {
        width: 320,
        height: 240,
        layer: [
          {
            mark: { type: "rule", strokeDash: [4, 4], color: "#777" },
            encoding: { y: { aggregate: "mean", field: "full", type: "quantitative" } },
          },
          {
            mark: { type: "rule", strokeWidth: 1 },
            encoding: { x, color, y: { ...y, field: "low" }, y2: { field: "high" } },
          },
          { mark: "line", encoding: { x, y, color } },
          { mark: { type: "point", filled: true, size: 60, opacity: 1 }, encoding: { x, y, color, shape } },
        ],
      },
    } as TopLevelSpec,
  };
}

/** Bytes as shares of the whole cache as float16, where budgets were asked for so; the best of each share is joined. */
function byteChart(rows: readonly Row[], lines: readonly ResultLine[]): Chart | undefined {
  if (!lines.some(({ bytesAsked }) => bytesAsked !== undefined)) return undefined;
  const values = overall(rows).filter(({ protocol }) => !protocol.includes(", ")).map((row) => {
    const rowType = /\brows="?([^")]+)"?/.exec(row.policy)?.[1].trim().replace(/,$/, "") ?? "as read";
    return {
      setting: settingOf(row),
      method: row.policy.replace(/,?\s*rows=("[^"]*"|[^,)]*)/, "").replace(/\(,?\s*\)/, "").replace("(,", "("),
      rows: rowType,
      // The whole cache of a line is float32.
      bytes: 200 * row.bytes,
      score: row.score,
      full: row.full,
    };
  });
  const best = [...groupBy(values, ({ setting }) => setting).values()].flatMap((some) =>
    some.filter((point) => !some.some((other) => other.bytes <= point.bytes && other.score > point.score))
  );
  const x = {
    field: "bytes",
    type: "quantitative",
    title: "bytes, % of the whole cache as float16",
    scale: { type: "log", base: 2 },
  } as const;
  const y = { field: "score", type: "quantitative", title: "score", scale: { domain: [0, 100], clamp: true } } as const;
  return {
    title: "Answers per byte",
    caption:
      "Mean score over all tasks against the bytes that stay, biases and scales counted. Line: no other point has " +
      "a higher score in as few bytes. Grey line: the full cache as it was read.",
    spec: {
      ...COMMON,
      data: { values },
      facet: { field: "setting", type: "nominal", title: null, columns: 2 },
      columns: 2,
      spec: {
        width: 420,
        height: 300,
        layer: [
          {
            mark: { type: "rule", strokeDash: [4, 4], color: "#777" },
            encoding: { y: { aggregate: "mean", field: "full", type: "quantitative" } },
          },
          {
            transform: [{ filter: { or: best.map(pointFilter) } }],
            mark: { type: "line", color: "#bbb" },
            encoding: { x, y },
          },
          {
            mark: { type: "point", filled: true, size: 60, opacity: 1 },
            encoding: {
              x,
              y,
              color: { field: "method", type: "nominal", sort: null, scale: PALETTE },
              shape: { field: "rows", type: "nominal", title: "stored as", sort: null },
            },
          },
        ],
      },
    } as TopLevelSpec,
  };
}

function pointFilter(
  { setting, method, rows, bytes }: Readonly<Record<"setting" | "method" | "rows", string>> & { bytes: number },
) {
  const is = (field: string, equal: string | number) => ({ field, equal });
  return { and: [is("setting", setting), is("method", method), is("rows", rows), is("bytes", bytes)] };
}

function taskChart(rows: readonly Row[]): Chart | undefined {
  const evicted = rows.filter((row) => row.task !== "all" && row.task !== "solved" && row.bytes < 1);
  if (evicted.length === 0) return undefined;
  const values = evicted.map((row) => ({
    setting: `${settingOf(row)}, keep ${row.keep}`,
    task: row.task,
    policy: row.policy,
    score: row.score,
    full: row.full,
  }));
  const x = { field: "task", type: "nominal", title: null, sort: null, axis: { labelAngle: -20 } } as const;
  const xOffset = { field: "policy", type: "nominal", sort: null } as const;
  return {
    title: "Score by task",
    caption: "Mean score of each policy on each task, one panel per budget. Black lines: the full cache on the same " +
      "samples. No bar: a score of 0, or not measured; the table tells.",
    spec: {
      ...COMMON,
      data: { values },
      facet: { field: "setting", type: "nominal", title: null, sort: null },
      columns: 1,
      spec: {
        width: { step: 10 },
        height: 160,
        layer: [
          {
            mark: "bar",
            encoding: {
              x,
              xOffset,
              y: { field: "score", type: "quantitative", title: "score", scale: { domain: [0, 100] } },
              color: { field: "policy", type: "nominal", title: "policy", sort: null, scale: PALETTE },
            },
          },
          {
            mark: { type: "tick", color: "black", thickness: 1.5 },
            encoding: { x, xOffset, y: { field: "full", type: "quantitative" } },
          },
        ],
      },
    } as TopLevelSpec,
  };
}

function headChart(lines: readonly ResultLine[]): Chart | undefined {
  const evicted = lines.filter((line) => line.bytes.live < line.bytes.full);
  if (evicted.length === 0) return undefined;
  const several = new Set(lines.map(settingName)).size > 1;
  const values = [...groupBy(evicted, (line) => `${settingName(line)}/${caseKey(line)}`).values()].flatMap((some) => {
    const [{ asked, kept }] = some;
    const name = `${asked.policy} ${asked.keep}${several ? ` ${settingName(some[0])}` : ""}`;
    return kept.flatMap((heads, layer) =>
      heads.map((_, head) => ({
        case: name,
        layer,
        head,
        kept: 100 * mean(some.map((line) => line.kept[layer][head] / line.tokens.context)),
      }))
    );
  });
  const heads = evicted[0].kept[0].length;
  const order = [...new Set(values.map((value) => value.case))];
  return {
    title: "Budget by layer and head",
    caption: "Share of the context's entries that each KV head of each layer keeps, mean over all samples. " +
      "Even colours: every head gets the same; stripes: layers or heads compete.",
    spec: {
      ...COMMON,
      data: { values },
      facet: {
        field: "case",
        type: "nominal",
        title: null,
        sort: order,
        header: { labelExpr: BROKEN, labelFontSize: 10, labelLimit: 160 },
      },
      columns: 6,
      spec: {
        width: Math.max(150, 16 * heads),
        height: { step: 6 },
        mark: "rect",
        encoding: {
          x: { field: "head", type: "ordinal", title: "KV head" },
          y: { field: "layer", type: "ordinal", title: "layer", axis: { labelOverlap: true } },
          color: { field: "kept", type: "quantitative", title: "kept, %", scale: { scheme: "viridis", domainMin: 0 } },
        },
      },
    } as TopLevelSpec,
  };
}

function settingName(line: ResultLine): string {
  return settingOf({ model: line.model.name, length: line.length, protocol: protocolOf(line) });
}
