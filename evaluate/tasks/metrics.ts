/**
 * How an answer is scored, 0 … 100. `contains-all` is RULER's string_match_all, `contains-any` its string_match_part
 * (NVIDIA/RULER scripts/eval/synthetic/constants.py); token F1 and exact match are SQuAD's (Rajpurkar et al. 2016,
 * arXiv 1606.05250), ROUGE-L is Lin 2004 with the F-measure at β = 1, edit similarity is 1 − Levenshtein / longer length.
 */

export const METRICS = ["contains-all", "contains-any", "exact", "token-f1", "rouge-l", "edit"] as const;

export type MetricName = typeof METRICS[number];

/** Scores `answer` against the expected ones (at least one); all but `contains-all` take the best of them. */
export function scoreAnswer(metric: MetricName, answer: string, expected: readonly string[]): number {
  if (expected.length === 0) throw new RangeError("scoreAnswer() needs at least one expected answer");
  const each = expected.map((wanted) => 100 * SCORES[metric](answer, wanted));
  if (metric === "contains-all") return each.reduce((sum, score) => sum + score, 0) / each.length;
  return Math.max(...each);
}

/**
 * True when nothing is left of a reference once the metric has normalised it, so that any answer would be right, or only
 * an empty one: no letter at all, or, for those that compare words, articles and punctuation alone.
 */
export function isNothing(metric: MetricName, wanted: string): boolean {
  if (!/[^\s\p{C}]/u.test(wanted)) return true;
  return WORD_METRICS.includes(metric) && words(wanted).length === 0;
}

/** Metrics that see {@link words} only. */
const WORD_METRICS: readonly MetricName[] = ["exact", "token-f1", "rouge-l"];

const SCORES: Readonly<Record<MetricName, (answer: string, wanted: string) => number>> = {
  "contains-all": contains,
  "contains-any": contains,
  exact: (answer, wanted) => words(answer).join(" ") === words(wanted).join(" ") ? 1 : 0,
  "token-f1": tokenF1,
  "rouge-l": rougeL,
  edit: editSimilarity,
};

function contains(answer: string, wanted: string): number {
  return answer.toLowerCase().includes(wanted.toLowerCase()) ? 1 : 0;
}

/** SQuAD's normalisation: lower case, no punctuation, no articles, single blanks. */
function words(text: string): string[] {
  const bare = text.toLowerCase().replace(/[!-/:-@[-`{-~]/g, "").replace(/\b(a|an|the)\b/g, " ");
  return bare.split(/\s+/).filter((word) => word !== "");
}

function tokenF1(answer: string, wanted: string): number {
  const left = words(wanted), said = words(answer);
  const size = left.length + said.length;
  if (size === 0) return 1;
  let common = 0;
  for (const word of said) {
    const at = left.indexOf(word);
    if (at < 0) continue;
    left.splice(at, 1);
    common++;
  }
  return 2 * common / size;
}

function rougeL(answer: string, wanted: string): number {
  const a = words(answer), b = words(wanted);
  if (a.length + b.length === 0) return 1;
  let previous = new Array<number>(b.length + 1).fill(0);
  for (const word of a) {
    const row = [0];
    b.forEach((other, j) => row.push(word === other ? previous[j] + 1 : Math.max(row[j], previous[j + 1])));
    previous = row;
  }
  return 2 * previous[b.length] / (a.length + b.length);
}

/** On the trimmed texts, by code point. */
function editSimilarity(answer: string, wanted: string): number {
  const a = [...answer.trim()], b = [...wanted.trim()];
  if (a.length + b.length === 0) return 1;
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  a.forEach((letter, i) => {
    const row = [i + 1];
    b.forEach((other, j) => {
      row.push(Math.min(previous[j] + (letter === other ? 0 : 1), previous[j + 1] + 1, row[j] + 1));
    });
    previous = row;
  });
  return 1 - previous[b.length] / Math.max(a.length, b.length);
}
