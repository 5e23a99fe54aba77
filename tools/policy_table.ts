/**
 * The policy table of docs/policies.md, from the registry.
 *
 *     deno run -A tools/policy_table.ts          prints it
 *     deno run -A tools/policy_table.ts --write  puts it between the markers in docs/policies.md
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { policies } from "../core/policy/registry.ts";
import { ROOT } from "./repository.ts";

const PAGE = join(ROOT, "docs/policies.md");
const START = "<!-- policies -->", END = "<!-- /policies -->";

/** Markdown, columns padded as `deno fmt` does, without a line break at the end. */
export function policyTable(): string {
  const rows = policies.map(({ name, over, summary, parameters, paper, reference }) => [
    `\`${over ? `${name}(${over})` : name}\``,
    summary,
    parameters.map((each) => `\`${each.name}=${each.default}\``).join(" "),
    reference ? "yes" : "",
    paper,
  ]);
  const table = [["policy", "what it keeps", "parameters", "`@reference`", "paper"], ...rows];
  const widths = table[0].map((_, column) => Math.max(...table.map((row) => row[column].length)));
  const line = (cells: readonly string[]) => `| ${cells.map((cell, i) => cell.padEnd(widths[i])).join(" | ")} |`;
  const [head, ...body] = table.map(line);
  return [head, line(widths.map((width) => "-".repeat(width))), ...body].join("\n");
}

/** What stands between the markers. @throws RangeError when a marker is missing. */
export function tableIn(markdown: string): string {
  const [from, to] = span(markdown);
  return markdown.slice(from, to).trim();
}

/** The text with the table put between the markers. @throws RangeError when a marker is missing. */
export function withTable(markdown: string, table: string): string {
  const [from, to] = span(markdown);
  return `${markdown.slice(0, from)}\n\n${table}\n\n${markdown.slice(to)}`;
}

function span(markdown: string): [number, number] {
  const start = markdown.indexOf(START), end = markdown.indexOf(END);
  if (start < 0 || end < start) throw new RangeError(`Cannot find ${START} and ${END}`);
  return [start + START.length, end];
}

if (import.meta.main) {
  if (process.argv.includes("--write")) writeFileSync(PAGE, withTable(readFileSync(PAGE, "utf8"), policyTable()));
  else console.log(policyTable());
}
