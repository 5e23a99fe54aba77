/** The texts of a calibration as token ids: those fitted on, those held out, and those of a kind the gate never saw. */
import { inputError, option } from "../../../core/errors.ts";
import { breathe } from "../../../runtime/breathe.ts";
import type { Runtime } from "../../../runtime/interface.ts";
import { packageData } from "../../../runtime/package_data.ts";
import type { Model } from "../../model.ts";
import { type ChatFrame, contextIds } from "../../text/prompt.ts";
import type { TextTokenizer } from "../../text/tokenizer.ts";
import { Draw, type Kind, KINDS, mixedText } from "./text.ts";

/** Tokens of each text that is fitted on. */
export const FIT_TOKENS = 1024;
/** Texts held out for correlation and split conformal, and their tokens. */
export const HELD_OUT_TEXTS = 40, HELD_OUT_TOKENS = 192;
/** Texts of the shifted domain, as long as the held-out ones. */
export const SHIFTED_TEXTS = 10;

export interface PlanOptions {
  /** Tokens to fit on; at least two texts' worth are needed for a held-out error. */
  readonly tokens: number;
  readonly seed: number;
  /** Kinds of built-in text. Default all. */
  readonly kinds?: readonly Kind[];
  /** The user's own texts: half of everything comes from them. */
  readonly texts?: readonly { readonly name: string; readonly text: string }[];
  /** False: no texts are held out, for correlations and margins, and none of another kind. Default true. */
  readonly heldOut?: boolean;
  readonly signal?: AbortSignal;
}

export interface CalibrationPlan {
  readonly sources: readonly string[];
  readonly seed: number;
  /** Each at most {@link FIT_TOKENS} long, shorter for models trained on less than twice that. */
  readonly fit: readonly (readonly number[])[];
  readonly heldOut: readonly (readonly number[])[];
  readonly shifted: readonly (readonly number[])[];
}

/**
 * Makes the texts.
 * @throws PalisadeError `calibrate.tokens` for fewer than 1000 tokens, `calibrate.text` when the user's texts have fewer
 * than 1000 tokens, what the tokenizer throws, and `signal.reason` once it is aborted.
 */
export async function planCalibration(
  model: Pick<Model, "frame" | "tokenizer" | "config">,
  runtime: Runtime,
  { tokens, seed, kinds = KINDS, texts = [], heldOut: holds = true, signal }: PlanOptions,
): Promise<CalibrationPlan> {
  if (tokens < 1000) throw inputError("calibrate.tokens", `${tokens} tokens: want at least 1000`, option("tokens"));
  const prose = await realProse(runtime);
  const built = async (
    count: number,
    length: number,
    from: number,
    which: readonly Kind[],
    real: readonly string[],
  ) => {
    const made: number[][] = [];
    for (let i = 0; i < count; i++) {
      await breathe(signal);
      const text = mixedText(new Draw(seed * 1000 + from + i), which, length * 6, real);
      made.push(contextIds(model.frame, model.tokenizer, text).slice(0, length));
    }
    return made;
  };
  const half = Math.ceil(prose.length * 0.7);
  // Text and repetition must fit into the trained context, with some room for the instruction between them.
  const length = Math.min(FIT_TOKENS, Math.floor(tokens / 2), Math.floor(model.config.contextLength / 2) - 64);
  const fit = await built(Math.ceil(tokens / length), length, 0, kinds, prose.slice(0, half));
  const heldOut = await built(holds ? HELD_OUT_TEXTS : 0, HELD_OUT_TOKENS, 500, kinds, prose.slice(half));
  const shifted = await built(holds ? SHIFTED_TEXTS : 0, HELD_OUT_TOKENS, 900, ["log"], []);
  if (texts.length > 0) mixIn(model, texts.map(({ text }) => text).join("\n\n"), fit, heldOut);
  return { sources: [`built in (${kinds.join(", ")})`, ...texts.map(({ name }) => name)], seed, fit, heldOut, shifted };
}

/** Puts pieces of the user's text in the place of every second text: the first 80 % fitted on, the rest held out. */
function mixIn(
  { frame, tokenizer }: { readonly frame: ChatFrame; readonly tokenizer: TextTokenizer },
  text: string,
  fit: number[][],
  heldOut: number[][],
): void {
  const [prefix, all] = [contextIds(frame, tokenizer, ""), tokenizer.encode(text)];
  if (all.length < 1000) {
    throw inputError(
      "calibrate.text",
      `The texts have ${all.length} tokens together: want at least 1000`,
      option("text"),
    );
  }
  const cut = Math.floor(all.length * 0.8);
  replaceEverySecond(fit, all.slice(0, cut), prefix);
  replaceEverySecond(heldOut, all.slice(cut), prefix);
}

/** Pieces begin evenly spread over `own`, so that a short text is used whole and a long one from end to end. */
function replaceEverySecond(texts: number[][], own: readonly number[], prefix: readonly number[]): void {
  const count = Math.floor(texts.length / 2);
  for (let i = 0; i < count; i++) {
    const length = texts[2 * i + 1].length - prefix.length;
    const first = Math.floor(Math.max(0, own.length - length) * i / Math.max(1, count - 1));
    texts[2 * i + 1] = [...prefix, ...own.slice(first, first + length)];
  }
}

/** Sentences of the package's public-domain chapters; none in a build that carries no data. */
async function realProse(runtime: Runtime): Promise<string[]> {
  const files = (await packageData(runtime, "demo")).filter(({ name }) => name.endsWith(".txt"));
  if (files.length === 0) return [];
  const texts = await Promise.all(files.map(async (file) => new TextDecoder().decode(await file.read())));
  return texts.join(" ").replace(/\s+/g, " ").trim().split(/(?<=[.!?]["'”’]?) /);
}
