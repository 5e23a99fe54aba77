/**
 * Frequent words: coded words whose frequencies fall as rank^−2, the most frequent one being "..." noise; which three
 * come next? NVIDIA/RULER scripts/data/synthetic/freq_words_extraction.py: six letters, length / 50 different words.
 */
import { Draw } from "./draw.ts";
import { fitLength } from "./fit.ts";
import type { Prompt, Sample, SampleRequest, Task } from "./interface.ts";

const MAX_NEW_TOKENS = 50;
const LETTERS = 6;
const ALPHA = 2;
/** ζ(2), which makes the frequencies of all ranks sum to 1. */
const ZETA = Math.PI ** 2 / 6;

export const fwe: Task = { name: "fwe", sized: true, generate };

function generate({ length, seed, promptTokens }: SampleRequest): Sample {
  const words = codedWords(new Draw(seed), Math.max(4, Math.floor(length / 50)));
  const build = (n: number): Prompt => {
    const all = words.flatMap((word, i) => new Array<string>(Math.floor(n * (i + 1) ** -ALPHA / ZETA)).fill(word));
    return {
      context: "Read the following coded text and track the frequency of each coded word. " +
        `Find the three most frequently appeared coded words. ${new Draw(seed + 1).shuffled(all).join(" ")}`,
      question: "Question: Do not provide any explanation. Please ignore the dots '....'. " +
        "What are the three most frequently appeared words in the above coded text?",
      answerPrefix: " Answer: According to the coded text above, the three most frequently appeared words are:",
    };
  };
  const prompt = fitLength(build, (each) => promptTokens(each) + MAX_NEW_TOKENS, { length, least: 30, task: "fwe" });
  return { ...prompt, answers: words.slice(1, 4), metric: "contains-all", maxNewTokens: MAX_NEW_TOKENS };
}

function codedWords(draw: Draw, count: number): string[] {
  const words = new Set(["..."]);
  while (words.size < count) words.add(draw.letters(LETTERS, "abcdefghijklmnopqrstuvwxyz"));
  return [...words];
}
