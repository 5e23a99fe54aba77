/** Gemma 4's kind of vocabulary: pieces that are joined by a list of pairs. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { gunzipSync, strFromU8 } from "fflate";
import { tokenizerOf } from "../../model/text/tokenizer.ts";

interface Reference {
  readonly tokens: string[];
  readonly merges: string[];
  readonly cases: [text: string, ids: number[]][];
  /** Of the texts that every tokenizer is compared on. */
  readonly ids: number[][];
}

async function packed(name: string) {
  return JSON.parse(strFromU8(gunzipSync(await readFile(new URL(`../data/${name}.json.gz`, import.meta.url)))));
}

const reference: Reference = await packed("gemma4_tokenizer");

function metadata(more: Readonly<Record<string, unknown>> = {}): Map<string, unknown> {
  const { tokens, merges } = reference;
  const type = (token: string) => /^<0x..>$/.test(token) ? 6 : /^<(pad|eos|bos|unk)>$/.test(token) ? 3 : 1;
  const given = {
    model: "gemma4",
    tokens,
    merges,
    token_type: tokens.map(type),
    bos_token_id: 2,
    eos_token_id: 1,
    ...more,
  };
  return new Map(Object.entries(given).map(([key, value]) => [`tokenizer.ggml.${key}`, value]));
}

Deno.test("a vocabulary of Gemma 4's kind gives the ids of the reference, and the text back", () => {
  const tokenizer = tokenizerOf(metadata());
  assert.equal(reference.cases.length, 400);
  for (const [text, ids] of reference.cases) {
    assert.deepEqual(tokenizer.encode(text), ids, JSON.stringify(text));
    assert.equal(tokenizer.decode(ids), text.replaceAll("\u2581", " "));
  }
  assert.deepEqual([tokenizer.firstId, [...tokenizer.endIds]], [2, [1]]);
});

Deno.test("a vocabulary of Gemma 4's kind gives the reference's ids on 2000 texts of many scripts", async () => {
  const { texts }: { texts: string[] } = await packed("tokenizers"), tokenizer = tokenizerOf(metadata());
  assert.equal(texts.length, 2000);
  for (const [i, text] of texts.entries()) {
    assert.deepEqual([...tokenizer.encode(text)], reference.ids[i], JSON.stringify(text));
  }
});

Deno.test("its pairs join in order, and what they make must be a piece", () => {
  const { merges } = reference, reversed = tokenizerOf(metadata({ merges: [...merges].reverse() }));
  assert.ok(reference.cases.some(([text, ids]) => `${reversed.encode(text)}` !== `${ids}`));
  const where = "tokenizer.ggml.merges";
  assert.throws(() => tokenizerOf(metadata({ merges: [...merges, "q qq"] })), { code: "tokenizer.metadata", where });
  assert.throws(() => tokenizerOf(metadata({ merges: undefined })), { code: "tokenizer.metadata", where });
});

Deno.test("an answer of Gemma 4 ends with its turn, whatever the file names as its end", () => {
  const tokens = [...reference.tokens, "<|turn>", "<turn|>"], types = metadata().get("tokenizer.ggml.token_type");
  const chat_template =
    "{% for message in messages %}<|turn>{{ message['role'] }}\n{{ message['content'] }}<turn|>\n{% endfor %}";
  const given = metadata({ tokens, token_type: [...types as number[], 3, 3] });
  const tokenizer = tokenizerOf(new Map([...given, ["tokenizer.chat_template", chat_template]]));
  assert.deepEqual(tokenizer.endIds, new Set([1, tokens.length - 1]));
  assert.ok(tokenizer.isControl(tokens.length - 2) && tokenizer.encode("<turn|>").length > 1);
});
