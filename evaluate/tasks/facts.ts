/**
 * Needles in a real text: facts drawn from a seed, hidden between its sentences.
 *
 * The wording of fact and question is RULER's "needle in a haystack" with word keys and number values (Hsieh et al.
 * 2024, arXiv 2404.06654, NVIDIA/RULER scripts/data/synthetic/constants.py), so that scores can be set beside published ones.
 */
import { randomSource } from "../../core/measure/random.ts";

export interface HiddenFact {
  readonly key: string;
  /** Seven digits. */
  readonly answer: string;
  /** Where it was hidden: share of the text in front of it, 0 … 1. */
  readonly depth: number;
  readonly question: string;
  /** What the reply is made to start with. */
  readonly answerPrefix: string;
}

const ADJECTIVES = [
  "amber",
  "brisk",
  "calm",
  "dusty",
  "eager",
  "faint",
  "gentle",
  "hollow",
  "ivory",
  "jolly",
  "keen",
  "lucid",
];
const NOUNS = [
  "anchor",
  "basket",
  "candle",
  "drum",
  "easel",
  "fiddle",
  "goblet",
  "hammer",
  "inkwell",
  "kettle",
  "lantern",
  "mitten",
];

const INTRODUCTION =
  "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the " +
  "number afterwards.\n";

/** Hides `count` facts (1 … 12, distinct keys) in `text`; the same seed gives the same facts at the same places. */
export function hideFacts(
  text: string,
  { count, seed }: { count: number; seed: number },
): { context: string; facts: HiddenFact[] } {
  if (!Number.isInteger(count) || count < 1 || count > NOUNS.length) {
    throw new RangeError(`Can't hide ${count} facts: want 1 to ${NOUNS.length}`);
  }
  const random = randomSource(seed);
  const sentences = text.trim().split(/(?<=[.!?]["']?)\s+/);
  const adjectives = shuffled(ADJECTIVES, random), nouns = shuffled(NOUNS, random);
  const drawn = Array.from({ length: count }, (_, i) => ({
    key: `${adjectives[i]}-${nouns[i]}`,
    answer: String(1_000_000 + Math.floor(random() * 9_000_000)),
    at: Math.floor(random() * sentences.length),
  }));
  drawn.sort((a, b) => a.at - b.at);
  const pieces = [...sentences];
  for (const { key, answer, at } of [...drawn].reverse()) {
    pieces.splice(at, 0, `One of the special magic numbers for ${key} is: ${answer}.`);
  }
  const facts = drawn.map(({ key, answer, at }) => ({
    key,
    answer,
    depth: at / sentences.length,
    question: `What is the special magic number for ${key} mentioned in the provided text?`,
    answerPrefix: ` The special magic number for ${key} mentioned in the provided text is`,
  }));
  return { context: INTRODUCTION + pieces.join(" "), facts };
}

function shuffled<T>(list: readonly T[], next: () => number): T[] {
  const copy = [...list];
  for (let i = copy.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [copy[i], copy[j]] = [copy[j], copy[i]];
  }
  return copy;
}
