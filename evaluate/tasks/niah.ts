/**
 * Needles in a haystack, the eight variants of RULER. Parameters, templates and depths: NVIDIA/RULER
 * scripts/synthetic.yaml, scripts/data/synthetic/constants.py and niah.py. Ours: keys from `words.ts`, prose from
 * the haystack beginning at a sentence drawn per sample (RULER always begins with the same essay), and the length filled
 * to one word or line instead of fixed increments.
 */
import { adjectives, nouns } from "./words.ts";
import { Draw } from "./draw.ts";
import { fitLength } from "./fit.ts";
import { proseFrom } from "./haystack.ts";
import type { Prompt, Sample, SampleRequest, Task } from "./interface.ts";

/** RULER's repeated haystack. */
export const NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/** RULER tokens_to_generate. */
const MAX_NEW_TOKENS = 128;

/** Percent of the text in front of a needle in prose: 40 evenly spaced, as in niah.py. */
const DEPTHS = Array.from({ length: 40 }, (_, i) => Math.round(i * 100 / 39));

interface Variant {
  readonly haystack: "repeat" | "essay" | "needle";
  readonly key: "words" | "uuids";
  readonly value: "numbers" | "uuids";
  readonly keys: number;
  readonly values: number;
  readonly queries: number;
}

const ONE = { keys: 1, values: 1, queries: 1 } as const;

const VARIANTS: Readonly<Record<string, Variant>> = {
  niah_single_1: { ...ONE, haystack: "repeat", key: "words", value: "numbers" },
  niah_single_2: { ...ONE, haystack: "essay", key: "words", value: "numbers" },
  niah_single_3: { ...ONE, haystack: "essay", key: "words", value: "uuids" },
  niah_multikey_1: { ...ONE, haystack: "essay", key: "words", value: "numbers", keys: 4 },
  niah_multikey_2: { ...ONE, haystack: "needle", key: "words", value: "numbers" },
  niah_multikey_3: { ...ONE, haystack: "needle", key: "uuids", value: "uuids" },
  niah_multivalue: { ...ONE, haystack: "essay", key: "words", value: "numbers", values: 4 },
  niah_multiquery: { ...ONE, haystack: "essay", key: "words", value: "numbers", queries: 4 },
};

export const niahTasks: readonly Task[] = Object.entries(VARIANTS).map(([name, variant]) => ({
  name,
  sized: true,
  generate: (request) => generate(name, variant, request),
}));

function generate(name: string, variant: Variant, request: SampleRequest): Sample {
  const answers: string[] = [];
  const build = (n: number): Prompt => {
    const draw = new Draw(request.seed);
    const { keys, needles, values } = drawNeedles(draw, variant);
    const asked = draw.sample(keys.map((_, i) => i), variant.queries);
    answers.splice(0, Infinity, ...asked.flatMap((i) => values[i]));
    const text = hide(draw, variant, draw.shuffled(needles), n, request, new Set(keys));
    return promptOf(variant, text, asked.map((i) => keys[i]));
  };
  const prompt = fitLength(build, (each) => request.promptTokens(each) + MAX_NEW_TOKENS, {
    length: request.length,
    least: variant.haystack === "essay" ? 40 : 2 * needleCount(variant),
    task: name,
  });
  return { ...prompt, answers: [...answers], metric: "contains-all", maxNewTokens: MAX_NEW_TOKENS };
}

function needleCount({ keys, values, queries }: Variant): number {
  return Math.max(keys, queries) * values;
}

function drawNeedles(draw: Draw, variant: Variant) {
  const keys: string[] = [], values: string[][] = [];
  while (keys.length < Math.max(variant.keys, variant.queries)) {
    const key = drawText(draw, variant.key);
    if (keys.includes(key)) continue;
    keys.push(key);
    values.push(Array.from({ length: variant.values }, () => drawText(draw, variant.value)));
  }
  const needles = keys.flatMap((key, i) => values[i].map((value) => needleText(variant, key, value)));
  return { keys, values, needles };
}

function needleText({ value: type }: Variant, key: string, value: string): string {
  return `One of the special magic ${type} for ${key} is: ${value}.`;
}

function drawText(draw: Draw, type: "words" | "numbers" | "uuids"): string {
  if (type === "numbers") return String(draw.integer(1_000_000, 9_999_999));
  return type === "words" ? `${draw.one(adjectives)}-${draw.one(nouns)}` : drawUuid(draw);
}

/** Random UUID, version 4 (RFC 9562). */
function drawUuid(draw: Draw): string {
  const digits = draw.letters(32, "0123456789abcdef").split("");
  digits[12] = "4";
  digits[16] = draw.one(["8", "9", "a", "b"]);
  const text = digits.join("");
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join("-");
}

/** `n` words of prose, or `n` lines, with the needles in between. */
function hide(
  draw: Draw,
  variant: Variant,
  needles: readonly string[],
  n: number,
  { haystack }: SampleRequest,
  taken: ReadonlySet<string>,
): string {
  if (variant.haystack === "essay") {
    const depths = draw.sample(DEPTHS, needles.length).sort((a, b) => a - b);
    const sentences = proseFrom(haystack, draw.integer(0, haystack.sentences.length - 1), n);
    const pieces = [...sentences];
    for (let i = needles.length - 1; i >= 0; i--) {
      pieces.splice(Math.floor(sentences.length * depths[i] / 100), 0, needles[i]);
    }
    return pieces.join(" ");
  }
  const at = draw.sample(Array.from({ length: n }, (_, i) => i), needles.length).sort((a, b) => b - a);
  const lines = Array.from(
    { length: n },
    () => variant.haystack === "repeat" ? NOISE : distractor(draw, variant, taken),
  );
  needles.forEach((needle, i) => lines.splice(at[i], 0, needle));
  return lines.join("\n");
}

/** A needle with another key. */
function distractor(draw: Draw, variant: Variant, taken: ReadonlySet<string>): string {
  let key = drawText(draw, variant.key);
  while (taken.has(key)) key = drawText(draw, variant.key);
  return needleText(variant, key, drawText(draw, variant.value));
}

function promptOf(variant: Variant, text: string, asked: readonly string[]): Prompt {
  const one = variant.queries * variant.values === 1;
  const type = one ? variant.value.slice(0, -1) : variant.value;
  const query = asked.length === 1 ? asked[0] : `${asked.slice(0, -1).join(", ")}, and ${asked.at(-1)}`;
  const hidden = one ? `A special magic ${type} is` : `Some special magic ${type} are`;
  const subject = `the special magic ${type} for ${query} mentioned in the provided text`;
  return {
    context: `${hidden} hidden within the following text. Make sure to memorize it. ` +
      `I will quiz you about the ${type} afterwards.\n${text}`,
    question: `What ${one ? "is" : "are all"} ${subject}?`,
    answerPrefix: ` T${subject.slice(1)} ${one ? "is" : "are"}`,
  };
}
