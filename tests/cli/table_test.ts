import assert from "node:assert/strict";
import { tableText } from "../../cli/print/table.ts";

Deno.test("tableText() draws one rule, under the header, unless rules are wanted", () => {
  const rows = [["1", "one"], ["2", "two\nmore"], ["3", "three"]];
  const shapes = (text: string) => text.split("\n").map((line) => line[0]).join("");
  assert.equal(shapes(tableText(["n", "word"], rows)), "┌│├││││└");
  assert.equal(shapes(tableText(["n", "word"], rows, { rules: true })), "┌│├│├││├│└");
});

Deno.test("tableText() wraps cells that are longer than their column", () => {
  const text = tableText(["word"], [["many words in a narrow column"]], { widths: [14] });
  assert.ok(text.split("\n").every((line) => line.length === 16), text);
});
