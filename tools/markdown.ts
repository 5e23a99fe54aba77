/** Tables and marked parts of Markdown pages that tools write. */

/** Rows below a head, columns padded as `deno fmt` does, without a line break at the end. */
export function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const table = [head, ...rows].map((row) => row.map((cell) => cell.replaceAll("|", "\\|")));
  const widths = head.map((_, column) => Math.max(3, ...table.map((row) => row[column].length)));
  const line = (cells: readonly string[]) => `| ${cells.map((cell, i) => cell.padEnd(widths[i])).join(" | ")} |`;
  const [first, ...body] = table.map(line);
  return [first, line(widths.map((width) => "-".repeat(width))), ...body].join("\n");
}

/** What stands between `<!-- mark -->` and `<!-- /mark -->`. @throws RangeError when one of them is missing. */
export function partIn(markdown: string, mark: string): string {
  const [from, to] = span(markdown, mark);
  return markdown.slice(from, to).trim();
}

/** The text with `part` put there. @throws RangeError when a mark is missing. */
export function withPart(markdown: string, mark: string, part: string): string {
  const [from, to] = span(markdown, mark);
  return `${markdown.slice(0, from)}\n\n${part}\n\n${markdown.slice(to)}`;
}

function span(markdown: string, mark: string): [number, number] {
  const start = `<!-- ${mark} -->`, end = `<!-- /${mark} -->`;
  const from = markdown.indexOf(start), to = markdown.indexOf(end);
  if (from < 0 || to < from) throw new RangeError(`Cannot find ${start} and ${end}`);
  return [from + start.length, to];
}
