import assert from "node:assert/strict";
import { defaultFrame, FRAMES, frameText, resolveFrame } from "../../model/text/frames.ts";

Deno.test("every named frame is the text it was written as", () => {
  for (const [name, text] of Object.entries(FRAMES)) {
    assert.equal(frameText(resolveFrame(name)), text);
    assert.equal(resolveFrame(name).name, name);
  }
});

Deno.test("resolveFrame() cuts a text at its places", () => {
  assert.deepEqual(resolveFrame("a {text} b\n{question} c"), {
    name: "custom",
    before: "a ",
    between: " b\n",
    after: " c",
  });
  assert.deepEqual(resolveFrame("{text}{question}"), { name: "custom", before: "", between: "", after: "" });
});

Deno.test("resolveFrame() refuses a name that isn't there and a text without its places", () => {
  const refused = (text: string, code: string, message: RegExp) =>
    assert.throws(() => resolveFrame(text), { code, where: "frame", message });
  refused("blanc", "frame.unknown", /did you mean blank\?/);
  refused("", "frame.unknown", /known: line, blank/);
  refused("constructor", "frame.unknown", /known/);
  for (
    const text of [
      "{text} only",
      "{question} only",
      "{question}\n{text}",
      "{question}\n{text}\n{question}",
      "{text}{text}{question}",
      "{text}{question}{question}",
      "{text} {question} {text}",
    ]
  ) refused(text, "frame.syntax", /want \{text\} once, and after it \{question\} once/);
});

Deno.test("every default is a named frame, for unknown architectures too", () => {
  for (const architecture of ["llama", "qwen2", "gemma3", "none of these", "constructor", undefined, 7]) {
    for (const kind of ["chat", "plain"] as const) {
      const { name } = defaultFrame(architecture, kind);
      assert.ok(Object.hasOwn(FRAMES, name) && name !== "none", name);
    }
  }
});
