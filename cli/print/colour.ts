/** Whether colours are used, and which: `--color`, then FORCE_COLOR, NO_COLOR (no-color.org), then the terminal. */
import type { Io } from "../io.ts";

/** What a terminal can show: nothing, the 16 colours of old, a palette of 256, or all of them. */
export type Depth = "none" | "16" | "256" | "truecolor";

/** What `--color` can be told: `always` takes what the terminal says of itself, 16 colours at least. */
export const COLOUR_CHOICES = ["auto", "always", "never", "256", "truecolor"] as const;
export type ColourChoice = typeof COLOUR_CHOICES[number];

/** Texts in colours, or as they are. */
export interface Styles {
  readonly depth: Depth;
  heading(text: string): string;
  good(text: string): string;
  failure(text: string): string;
  faint(text: string): string;
}

type Outside = Pick<Io, "runtime">;

/** The depth of one stream. `choice`: what `--color` says. */
export function depthOf(stream: "stdout" | "stderr", choice: string | undefined, { runtime }: Outside): Depth {
  if (choice === "never") return "none";
  if (choice === "256" || choice === "truecolor") return choice;
  if (choice === "always") return atLeast("16", terminalDepth(runtime));
  const forced = runtime.environment("FORCE_COLOR");
  if (forced !== undefined) return forcedDepth(forced);
  if (runtime.environment("NO_COLOR")) return "none";
  return runtime.isTerminal(stream) ? terminalDepth(runtime) : "none";
}

/** As Node reads it: 0 and false switch colours off, 2 and 3 say how many, anything else takes the 16. */
function forcedDepth(text: string): Depth {
  if (text === "0" || text === "false") return "none";
  return text === "2" ? "256" : text === "3" ? "truecolor" : "16";
}

/** What the terminal says of itself. */
function terminalDepth(runtime: Io["runtime"]): Depth {
  const term = runtime.environment("TERM") ?? "";
  if (term === "dumb") return "none";
  if (/^(truecolor|24bit)$/.test(runtime.environment("COLORTERM") ?? "")) return "truecolor";
  if (/256color/.test(term)) return "256";
  return term === "" && !runtime.platform.startsWith("win32") ? "none" : "16";
}

function atLeast(least: Depth, depth: Depth): Depth {
  return depth === "none" ? least : depth;
}

/** Texts for a stream of this depth. The 16 colours, which follow the terminal's own theme, are enough for words. */
export function stylesOf(depth: Depth): Styles {
  const style = (on: number, off: number) => (text: string) =>
    depth === "none" || text === "" ? text : `\x1b[${on}m${text}\x1b[${off}m`;
  return { depth, heading: style(1, 22), good: style(32, 39), failure: style(31, 39), faint: style(2, 22) };
}

/** The same outside with its colours decided. */
export function withColours(io: Io, choice: string | undefined): Io {
  const of = (stream: "stdout" | "stderr") => stylesOf(depthOf(stream, choice, io));
  return { ...io, styles: { out: of("stdout"), err: of("stderr") } };
}
