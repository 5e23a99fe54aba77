import assert from "node:assert/strict";
import { endsThinking, thoughtMarks, Thoughts } from "../../model/text/thoughts.ts";
import { randomSource } from "../../core/measure/random.ts";

const MARKS = { open: "<think>", close: "</think>" };

function split(pieces: readonly string[], begun = false): [thinking: string, answer: string] {
  const thoughts = new Thoughts(MARKS, begun);
  const all = [...pieces.map((piece) => thoughts.push(piece)), thoughts.end()];
  return [all.map(({ thinking }) => thinking).join(""), all.map(({ answer }) => answer).join("")];
}

const CASES: readonly [reply: string, begun: boolean, thinking: string, answer: string][] = [
  ["<think>\nhm\n</think>\n\n42", false, "\nhm\n", "42"],
  [" \n<think>hm</think>42 </think> <think>7", false, "hm", "42 </think> <think>7"],
  ["42 <think>no thought</think>", false, "", "42 <think>no thought</think>"],
  [" 42", false, "", " 42"],
  ["<thin", false, "", "<thin"],
  ["<thinking>", false, "", "<thinking>"],
  ["<think>cut < </thin", false, "cut < </thin", ""],
  ["<think></think>", false, "", ""],
  ["hm</think>\n42", true, "hm", "42"],
  ["<think>hm</think>42", true, "<think>hm", "42"],
  ["", false, "", ""],
  ["\n", false, "", "\n"],
];

Deno.test("Thoughts tells a thought from the answer", () => {
  for (const [reply, begun, ...expected] of CASES) assert.deepEqual(split([reply], begun), expected, reply);
});

Deno.test("Thoughts gives the same for any pieces", () => {
  const random = randomSource(5);
  for (const [reply, begun, ...expected] of CASES) {
    assert.deepEqual(split([...reply], begun), expected, reply);
    for (let round = 0; round < 20; round++) {
      const at = Math.floor(random() * (reply.length + 1));
      assert.deepEqual(split([reply.slice(0, at), reply.slice(at)], begun), expected, `${reply} at ${at}`);
    }
  }
});

Deno.test("Thoughts gives what is certain at once", () => {
  const thoughts = new Thoughts(MARKS, false);
  assert.deepEqual(thoughts.push("<think>one "), { thinking: "one ", answer: "" });
  assert.deepEqual(thoughts.push("two</"), { thinking: "two", answer: "" });
  assert.deepEqual(thoughts.push("think>three"), { thinking: "", answer: "three" });
  assert.deepEqual(thoughts.push(" four"), { thinking: "", answer: " four" });
});

Deno.test("thoughtMarks() are those of the template", () => {
  assert.deepEqual(thoughtMarks("{{ '<think>\\n\\n</think>' }}"), MARKS);
  assert.equal(thoughtMarks("{% if '[/THINK]' in x %}")?.open, "[THINK]");
  assert.equal(thoughtMarks("{{ messages[0].content }}"), undefined);
});

Deno.test("endsThinking() looks at the last mark", () => {
  assert.ok(endsThinking("assistant\n<think>\n", MARKS));
  assert.ok(!endsThinking("assistant\n<think>\n\n</think>\n\n", MARKS));
  assert.ok(!endsThinking("assistant\n", MARKS));
});
