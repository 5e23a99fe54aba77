/** The table of `--explain`: one line per layer, its worst head. */
import type { CertificateReport } from "../../model/certificate_report.ts";

const COLUMNS = ["layer", "head", "kept", "largest risk", "risk sum", "evicted mass", "|o-o'| <=", "|oW-o'W|1 <="];

/** Lines for people, each ending with a line break. */
export function certificateText({ window, risk, layers }: CertificateReport): string {
  const rows = layers.map(({ layer, worstHead, heads, ...worst }) => {
    const { kept, evicted } = heads[worstHead];
    const figures = [worst.largestRisk, worst.riskSum, worst.evictedMass, worst.outputBound, worst.projectedBound];
    return [`${layer}`, `${worstHead}`, `${kept}/${kept + evicted}`, ...figures.map(figure)];
  });
  const widths = COLUMNS.map((name, i) => Math.max(name.length, ...rows.map((row) => row[i].length)));
  const line = (cells: readonly string[]) => `${cells.map((cell, i) => cell.padStart(widths[i])).join("  ")}\n`;
  const title = `worst case per layer, judged by the last ${window} queries; mean of the largest evicted masses ` +
    `${figure(risk)}\n`;
  return title + line(COLUMNS) + rows.map(line).join("");
}

function figure(value: number | undefined): string {
  return value === undefined ? "-" : value === 0 ? "0" : Number.isNaN(value) ? "unknown" : value.toPrecision(3);
}
