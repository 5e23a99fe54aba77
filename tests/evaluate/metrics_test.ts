import assert from "node:assert/strict";
import { METRICS, scoreAnswer } from "../../evaluate/tasks/metrics.ts";

/** Computed by hand: metric, answer, expected, score. */
const CASES: [typeof METRICS[number], string, string[], number][] = [
  ["contains-all", "They are 12 and 34.", ["12", "34", "56", "78"], 50],
  ["contains-all", "VAR ABC", ["abc"], 100],
  ["contains-all", "", ["12"], 0],
  ["contains-any", "It is Paris, I think", ["paris", "Rome"], 100],
  ["contains-any", "It is Oslo", ["Paris", "Rome"], 0],
  ["exact", " The Answer! ", ["answer"], 100],
  ["exact", "an answer of sorts", ["answer"], 0],
  // said {cat, sat, down}, wanted {cat, sat, on, mat}: 2 common, F1 = 2·2 / (3 + 4)
  ["token-f1", "the cat sat down", ["a cat sat on the mat"], 400 / 7],
  // each word counts once: said {x, x, x}, wanted {x, y}: 2·1 / 5
  ["token-f1", "x x x", ["x y"], 40],
  ["token-f1", "nothing", ["x y", "nothing"], 100],
  // longest common subsequence of "b c d" and "c b d" is 2: 2·2 / 6
  ["rouge-l", "b c d", ["c b d"], 400 / 6],
  ["rouge-l", "", ["x"], 0],
  // kitten → sitting takes 3 edits of 7
  ["edit", "kitten", ["sitting"], 400 / 7],
  ["edit", "same\n", ["same"], 100],
  ["edit", "😀", ["a"], 0],
];

for (const [metric, answer, expected, score] of CASES) {
  Deno.test(`scoreAnswer() by ${metric} gives "${answer}" against ${expected.join("|")} ${score.toFixed(1)}`, () => {
    assert.ok(
      Math.abs(scoreAnswer(metric, answer, expected) - score) < 1e-9,
      `${scoreAnswer(metric, answer, expected)}`,
    );
  });
}

Deno.test("scoreAnswer() refuses an empty list of expected answers", () => {
  for (const metric of METRICS) assert.throws(() => scoreAnswer(metric, "x", []), RangeError);
});
