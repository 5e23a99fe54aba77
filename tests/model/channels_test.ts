/** Replies in messages on channels, as gpt-oss gives them. */
import assert from "node:assert/strict";
import { Reply } from "../../model/decode/reply.ts";
import { Channels } from "../../model/text/channels.ts";
import { chatFrame, type FrameOptions } from "../../model/text/prompt.ts";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { tinyMetadata } from "../_helper/tiny_vocabulary.ts";

const CONTROL = ["<|channel|>", "<|message|>", "<|return|>", "<|call|>"];
/** Messages, and a reply that a template of this kind begins. */
const TEMPLATE =
  "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}" +
  "<|message|>{{ m.content }}{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}" +
  "{% endfor %}{% if false %}<|channel|>analysis<|message|>{% endif %}" +
  "{% if add_generation_prompt %}<|start|>assistant{% endif %}";

const metadata = tinyMetadata({ control: CONTROL }).set("tokenizer.chat_template", TEMPLATE);
const tokenizer = tokenizerOf(metadata);

async function frameOf(options: FrameOptions) {
  return await chatFrame(metadata, tokenizer, await currentRuntime(), options);
}

/** What is thought and answered, and the id that ended it, if one did. */
async function replied(said: string, options: FrameOptions, prefix = "") {
  const frame = await frameOf(options), reply = new Reply({ tokenizer, frame }, prefix, { allowLoops: true });
  const ids = tokenizer.encode(said, { special: true });
  const end = ids.find((id) => {
    if (tokenizer.endIds.has(id) && !reply.goesOnBehind(id)) return true;
    reply.add(id);
    return false;
  });
  reply.end();
  return [reply.thinking, reply.answer, end === undefined ? "" : tokenizer.decode([end])];
}

const THOUGHT = "<|channel|>analysis<|message|>It says 42 … <|end|>";
const FINAL = "<|start|>assistant<|channel|>final<|message|>";

for (
  const [said, thinking, answer, end] of [
    [`${THOUGHT}${FINAL}42.<|return|>`, "It says 42 …", "42.", "<|return|>"],
    [`${THOUGHT}${FINAL}4<|end|>2`, "It says 42 …", "4", "<|end|>"],
    [
      `${THOUGHT}<|start|>assistant<|channel|>analysis<|message|>Again.<|end|>${FINAL}42`,
      "It says 42 … \n\nAgain.",
      "42",
      "",
    ],
    [
      `${THOUGHT}<|start|>assistant to=x<|channel|>commentary json<|message|>{}<|call|>`,
      "It says 42 … \n\n{}",
      "",
      "<|call|>",
    ],
    ["<|channel|>analysis<|message|>It says", "It says", "", ""],
    ["<|channel|>final<|message|>42<|return|>", "", "42", "<|return|>"],
    ["<|message|>42<|return|>", "", "42", "<|return|>"],
    ["just 42", "", "just 42", ""],
    ["", "", "", ""],
  ]
) {
  Deno.test(`a reply in messages: ${JSON.stringify(said)}`, async () => {
    assert.deepEqual(await replied(said, { think: true }), [thinking, answer, end]);
  });
}

Deno.test("a reply in messages begins with the answer unless thinking is asked for", async () => {
  const off = await frameOf({}), on = await frameOf({ think: true });
  const written = (frame: typeof off) => frame.suffix.map(({ text }) => text).join("");
  assert.equal(written(off), "<|end|><|start|>assistant<|channel|>final<|message|>");
  assert.equal(written(on), "<|end|><|start|>assistant");
  assert.deepEqual([off.thinking?.asked, off.thinking?.begun, on.thinking?.asked], [false, false, true]);
  assert.deepEqual(off.ends.map((id) => tokenizer.decode([id])), ["<|return|>"]);
  assert.deepEqual(await replied("42<|return|>", {}), ["", "42", "<|return|>"]);
  assert.deepEqual(await replied("42<|end|>", {}), ["", "42", "<|end|>"]);
  assert.deepEqual(await replied(" 42<|end|>", {}, "It is"), ["", "It is 42", "<|end|>"]);
});

Deno.test("words that look like control tokens are text on any channel", () => {
  const channels = new Channels();
  const pieces = [
    channels.control("<|channel|>"),
    channels.text("ana"),
    channels.text("lysis"),
    channels.control("<|message|>"),
    channels.text("<|end|><|channel|>final"),
    channels.text(""),
    channels.control("<|end|>"),
    channels.control("<|start|>"),
    channels.text("assistant"),
    channels.control("<|channel|>"),
    channels.text("final"),
    channels.control("<|constrain|>"),
    channels.control("<|message|>"),
    channels.text("42"),
    channels.end(),
  ];
  const all = (part: "thinking" | "answer") => pieces.map((piece) => piece[part]).join("");
  assert.deepEqual([all("thinking"), all("answer")], ["<|end|><|channel|>final", "42"]);
});
