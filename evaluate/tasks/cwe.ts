/**
 * Common words: a numbered list in which ten words come more often than the rest; which ten? One worked example in
 * front. Counts as NVIDIA/RULER scripts/data/synthetic/common_words_extraction.py: 30 against 3 times from 4096 tokens
 * on, 6 against 1 below. RULER's words come from the package wonderwords; ours are those of the haystack.
 */
import { inputError, option } from "../../core/errors.ts";
import type { Haystack } from "./haystack.ts";
import { Draw } from "./draw.ts";
import { fitLength } from "./fit.ts";
import type { Prompt, Sample, SampleRequest, Task } from "./interface.ts";

const MAX_NEW_TOKENS = 120;
const COMMON = 10;
/** Shorter prompts get the small counts. */
const LONG = 4096;

export const cwe: Task = { name: "cwe", sized: true, generate };

interface Counts {
  /** Different words of the worked example. */
  readonly example: number;
  /** Times a common and an uncommon word come, in the example and in the list asked about. */
  readonly shown: readonly [common: number, uncommon: number];
  readonly asked: readonly [common: number, uncommon: number];
}

const COUNTS: { readonly short: Counts; readonly long: Counts } = {
  short: { example: 20, shown: [3, 1], asked: [6, 1] },
  long: { example: 40, shown: [10, 3], asked: [30, 3] },
};

const QUESTION = "Question: What are the 10 most common words in the above list?";
const ANSWER = " Answer: The top 10 words that appear most often in the list are:";

function generate({ length, seed, haystack, promptTokens }: SampleRequest): Sample {
  const counts = length < LONG ? COUNTS.short : COUNTS.long;
  const words = new Draw(seed).shuffled(vocabularyOf(haystack));
  const example = list(new Draw(seed + 1), words.slice(0, counts.example), counts.shown);
  const solved = numbered(words.slice(0, COMMON));
  const rest = words.slice(counts.example);
  const build = (n: number): Prompt => ({
    context: `${example}\n${QUESTION}${ANSWER} ${solved}\n${list(new Draw(seed + 2), rest.slice(0, n), counts.asked)}`,
    question: QUESTION,
    answerPrefix: ANSWER,
  });
  const prompt = fitLength(build, (each) => promptTokens(each) + MAX_NEW_TOKENS, {
    length,
    least: COMMON + 1,
    most: rest.length,
    task: "cwe",
  });
  return { ...prompt, answers: rest.slice(0, COMMON), metric: "contains-all", maxNewTokens: MAX_NEW_TOKENS };
}

/** The first ten words are the common ones. */
function list(draw: Draw, words: readonly string[], [common, uncommon]: readonly [number, number]): string {
  const all = words.flatMap((word, i) => new Array<string>(i < COMMON ? common : uncommon).fill(word));
  return "Below is a numbered list of words. In these words, some appear more often than others. " +
    `Memorize the ones that appear most often.\n${numbered(draw.shuffled(all))}`;
}

function numbered(words: readonly string[]): string {
  return words.map((word, i) => `${i + 1}. ${word}`).join(" ");
}

/** Different lower-case words of four to ten letters, in alphabetical order. */
function vocabularyOf({ sentences, name }: Haystack): string[] {
  const words = new Set<string>();
  for (const sentence of sentences) for (const word of sentence.match(/\b[a-z]{4,10}\b/g) ?? []) words.add(word);
  if (words.size >= 100) return [...words].sort();
  const message = `Can't take words from ${name}: want at least 100 different ones, it has ${words.size}`;
  throw inputError("haystack.short", message, option("haystack"));
}
