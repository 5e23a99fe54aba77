/** Tables for people. */
import Table from "cli-table3";
import { laidOut } from "./terminal.ts";

export interface TableOptions {
  /** Column widths in characters; longer cells wrap. Default: as wide as the widest cell. */
  readonly widths?: readonly number[];
  /** A rule between every two rows, for rows of several lines. Default: one rule, under the header. */
  readonly rules?: boolean;
}

/** A table with a header, without a line break at the end. */
export function tableText(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  { widths, rules = false }: TableOptions = {},
): string {
  const layout = widths ? { colWidths: [...widths], wordWrap: true } : {};
  const text = laidOut([...head, ...rows.flat()], (cells) => {
    const table = new Table({ head: cells.splice(0, head.length), style: { head: [], border: [] }, ...layout });
    table.push(...rows.map((row) => cells.splice(0, row.length)));
    return table.toString();
  });
  const lines = text.split("\n");
  const underHeader = lines.findIndex(isRule);
  return (rules ? lines : lines.filter((line, i) => i === underHeader || !isRule(line))).join("\n");
}

function isRule(line: string): boolean {
  return line.startsWith("├");
}
