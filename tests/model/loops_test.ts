import assert from "node:assert/strict";
import { LoopWatch } from "../../model/decode/loops.ts";

/** Tokens as a byte-level vocabulary would have them: words with their space, single digits, single marks. */
function tokens(text: string): string[] {
  return text.match(/ ?\p{L}+|\d|\s|[^\p{L}\d\s]/gu) ?? [];
}

/** How many tokens of the text are taken before it counts as a loop; undefined when it never does. */
function endsAt(text: string): number | undefined {
  const vocabulary: string[] = [];
  const watch = new LoopWatch((ids) => ids.map((id) => vocabulary[id]).join(""));
  for (const [i, token] of tokens(text).entries()) {
    if (!vocabulary.includes(token)) vocabulary.push(token);
    if (watch.push(vocabulary.indexOf(token))) return i + 1;
  }
  return undefined;
}

Deno.test("a phrase said over and over is a loop after four times and 32 tokens", () => {
  const sentence = " The keeper counted the stakes again, and then she shut the gate.";
  const period = tokens(sentence).length;
  assert.ok(period > 8 && period <= 32);
  assert.equal(endsAt(sentence.repeat(50)), 4 * period);
  assert.equal(
    endsAt(`It began well enough:${sentence.repeat(50)}`),
    tokens("It began well enough:").length + 4 * period,
  );
  assert.equal(endsAt(" no".repeat(500)), 32);
  assert.equal(endsAt("A:\n".repeat(100)), 32);
});

Deno.test("a phrase of 32 tokens is a loop, one of 33 is none", () => {
  const words = (count: number) =>
    Array.from({ length: count }, (_, i) => ` w${"abcdefghij"[i % 10]}${"klmnop"[i / 10 | 0]}`);
  assert.equal(endsAt(words(32).join("").repeat(10)), 128);
  assert.equal(endsAt(words(33).join("").repeat(10)), undefined);
});

Deno.test("three times is none", () => {
  assert.equal(endsAt("The keeper counted the stakes again and shut the gate. ".repeat(3)), undefined);
});

Deno.test("what repeats without words is left alone for long", () => {
  assert.equal(endsAt(`|${" --- |".repeat(8)}\n`), undefined);
  assert.equal(endsAt("-".repeat(120)), undefined);
  assert.equal(endsAt(`1${"0".repeat(100)} is a googol`), undefined);
  assert.equal(endsAt("0x00, ".repeat(16)), undefined);
  assert.equal(endsAt("\n".repeat(100)), undefined);
  assert.equal(endsAt("-".repeat(500)), 160);
  assert.equal(endsAt("0 ".repeat(500)), 160);
});

Deno.test("lists, tables, numbers and verse are no loops", () => {
  const legitimate = [
    Array.from({ length: 60 }, (_, i) => `${i + 1}. item number ${i + 1}\n`).join(""),
    Array.from({ length: 40 }, (_, i) => `| row ${i} | yes | no | yes |\n`).join(""),
    Array.from({ length: 40 }, (_, i) => `- The ${"red green blue grey white".split(" ")[i % 5]} one of ${i}\n`).join(
      "",
    ),
    Array.from({ length: 100 }, (_, i) => i * i).join(", "),
    "[null, null, null, null, null, null, null, null]",
    "| yes | yes | yes | yes | yes | yes |\n| yes | no | yes | yes | yes | yes |\n",
    "Row, row, row your boat,\nGently down the stream,\nMerrily, merrily, merrily, merrily,\nLife is but a dream.\n"
      .repeat(3),
    "ha ha ha ha ha ha ha ha ha ha",
    "if (a) {\n  return 1;\n}\nif (b) {\n  return 2;\n}\nif (c) {\n  return 3;\n}\nif (d) {\n  return 4;\n}\n",
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899",
    "11111111111111111111111111111111111111111111111111111111",
  ];
  for (const text of legitimate) assert.equal(endsAt(text), undefined, text);
});
