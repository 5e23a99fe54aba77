/** Which tokens of a context are kept, by how many heads: the numbers, and their picture in HTML and in a terminal. */
import stringWidth from "string-width";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { TextTokenizer } from "../../model/text/tokenizer.ts";
import { escapeHtml } from "./escape.ts";

export interface Shading {
  /** Heads of all layers together that look at everything. */
  readonly heads: number;
  /** Heads that keep each context token. */
  readonly counts: readonly number[];
  /** Text of each token; a character made of several tokens stands at its last. */
  readonly tokens: readonly string[];
}

/** Counts the heads that keep each token of `ids`, the context this cache was read from. */
export function shadingOf(cache: RaggedCache, tokenizer: TextTokenizer, ids: readonly number[]): Shading {
  const { globals, shape: { kvHeads } } = cache;
  const counts = new Array<number>(ids.length).fill(0);
  for (const layer of globals) {
    for (let head = 0; head < kvHeads; head++) {
      for (const position of cache.positions(layer, head)) if (position < ids.length) counts[position]++;
    }
  }
  const stream = tokenizer.stream();
  return { heads: globals.length * kvHeads, counts, tokens: ids.map((id) => stream.push(id)) };
}

/** Steps between no head and all heads. */
export const SHADES = 10;

/** A run of tokens with the same shade, 0 … {@link SHADES}. */
interface Run {
  readonly shade: number;
  readonly text: string;
}

/** Only tokens that no head keeps have shade 0, only those that all keep the last. */
function runsOf({ heads, counts, tokens }: Shading): Run[] {
  const runs: Run[] = [];
  let shade = -1, text = "";
  counts.forEach((count, i) => {
    const step = count === 0 ? 0 : count === heads ? SHADES : 1 + Math.floor((SHADES - 1) * count / heads);
    if (step !== shade && text !== "") {
      runs.push({ shade, text });
      text = "";
    }
    shade = step;
    text += tokens[i];
  });
  return [...runs, { shade, text }];
}

/** Styles of {@link shadingHtml}. */
export const SHADING_CSS = `.shading{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5}\n` +
  Array.from(
    { length: SHADES + 1 },
    (_, i) => `.k${i}{background:rgba(240,120,0,${(i / SHADES * 0.85).toFixed(3)})}`,
  ).join("") + `.k0{color:#888}\n`;

/** The context as a paragraph, each run of tokens in its shade. */
export function shadingHtml(shading: Shading): string {
  const runs = runsOf(shading).map(({ shade, text }) => `<span class="k${shade}">${escapeHtml(text)}</span>`);
  return `<p class="shading">${runs.join("")}</p>`;
}

/** What the shades mean. */
export function legendHtml(heads: number): string {
  const steps = Array.from({ length: SHADES + 1 }, (_, i) => `<span class="k${i}">&nbsp;&nbsp;</span>`).join("");
  return `<p>no head ${steps} all ${heads} heads keep the token</p>`;
}

/** How a terminal is told of shades. */
export type Colours = "truecolor" | "256" | "none";

/** Backgrounds of the 256-colour palette from dark grey to orange. */
const PALETTE = [235, 236, 237, 58, 94, 94, 130, 130, 166, 172, 208];
/** Marks under the text where there are no colours. */
const MARKS = " .,:-=+*#%@";

/** The context for a terminal. Control characters are shown as `·`, so that a text can't steer the terminal. */
export function shadingText(shading: Shading, colours: Colours, width = 80): string {
  const runs = runsOf(shading).map(({ shade, text }) => ({ shade, text: harmless(text) }));
  if (colours === "none") return markedLines(runs, width);
  return `${runs.map(({ shade, text }) => painted(text, shade, colours)).join("")}\n`;
}

/** What the shades mean. */
export function legendText(heads: number, colours: Colours): string {
  const steps = Array.from(
    { length: SHADES + 1 },
    (_, i) => colours === "none" ? `"${MARKS[i]}"` : painted("  ", i, colours),
  ).join(colours === "none" ? " " : "");
  return `no head ${steps} all ${heads} heads keep the token\n`;
}

function harmless(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/\r\n/g, "\n").replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, "·");
}

/** Colours are set anew on every line, so that a line break doesn't paint the rest of the screen. */
function painted(text: string, shade: number, colours: Exclude<Colours, "none">): string {
  const [red, green, blue] = [40 + 20 * shade, 40 + 8 * shade, Math.max(0, 40 - 4 * shade)];
  const background = colours === "truecolor" ? `48;2;${red};${green};${blue}` : `48;5;${PALETTE[shade]}`;
  const foreground = shade === 0 ? (colours === "truecolor" ? "38;2;150;150;150" : "38;5;246") : "97";
  return text.split("\n").map((line) => line === "" ? "" : `\x1b[${foreground};${background}m${line}\x1b[0m`).join(
    "\n",
  );
}

/** Lines of text, each with its shades as marks below it. */
function markedLines(runs: readonly Run[], width: number): string {
  let out = "", line = "", marks = "";
  const flush = () => {
    if (line !== "") out += `${line}\n${marks.trimEnd()}\n`;
    line = marks = "";
  };
  for (const { shade, text } of runs) {
    for (const letter of text) {
      const columns = stringWidth(letter);
      if (letter === "\n" || marks.length + columns > width) flush();
      if (letter === "\n") continue;
      line += letter;
      marks += MARKS[shade].repeat(columns);
    }
  }
  flush();
  return out;
}
