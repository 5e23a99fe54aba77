import assert from "node:assert/strict";
import { legendText, shadingHtml, shadingOf, shadingText } from "../../evaluate/report/shading.ts";
import { openContext } from "../../model/session.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { PROSE, tinyModel } from "../_helper/workbench.ts";

const SHADING = { heads: 4, counts: [0, 1, 3, 4, 4], tokens: ["one ", "two\n", "<b>", "é", "\x1b[31m"] };

Deno.test("shadingOf() counts heads and gives every token its text", async () => {
  await using model = await tinyModel();
  const text = `${PROSE.slice(0, 300)} – ünïcode 😀`;
  using context = await openContext(model, text, { policy: "layer-defensive", keep: "20%" });
  const ids = contextIds(model.frame, model.tokenizer, text);
  const { heads, counts, tokens } = shadingOf(context.cache, model.tokenizer, ids);
  assert.equal(heads, model.config.layers * model.config.kvHeads);
  assert.equal(counts.length, context.tokens);
  assert.equal(counts.reduce((a, b) => a + b, 0), context.cache.entries());
  assert.ok(tokens.join("").endsWith(text));
});

Deno.test("shadingHtml() escapes the text and shades by count", () => {
  const html = shadingHtml(SHADING);
  assert.ok(html.includes('<span class="k0">one </span><span class="k3">two\n</span>'), html);
  assert.ok(html.includes('<span class="k7">&lt;b&gt;</span><span class="k10">é'), html);
});

Deno.test("shadingText() sets colours per line and lets no control character through", () => {
  const text = shadingText(SHADING, "truecolor");
  assert.match(text, /48;2;40;40;40mone /);
  assert.ok(text.includes("mtwo\x1b[0m\n"));
  assert.ok(!text.includes("\x1b[31m") && text.includes("·[31m"));
  assert.match(shadingText(SHADING, "256"), /48;5;\d+m/);
});

Deno.test("shadingText() without colours writes marks under each line", () => {
  assert.equal(shadingText(SHADING, "none"), "one two\n    :::\n<b>é·[31m\n***@@@@@@\n");
  assert.ok(!legendText(4, "none").includes("\x1b"));
});

Deno.test("shadingText() breaks lines at the width", () => {
  const text = shadingText({ heads: 1, counts: [1], tokens: ["x".repeat(25)] }, "none", 10);
  assert.deepEqual(text.split("\n").filter((line) => line.startsWith("x")).map((line) => line.length), [10, 10, 5]);
});
