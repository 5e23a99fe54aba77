/** Ids of 2,000 texts against the reference libraries (tools/make_tokenizer_cases.py wrote them). */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { gunzipSync, strFromU8 } from "fflate";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { preTokenizerNames } from "../../model/text/tokenizer/pretokenizers.ts";
import type { Pieces } from "../../model/text/tokenizer/sentencepiece.ts";

type Ids = readonly (readonly number[])[];

interface Cases {
  readonly texts: readonly string[];
  readonly bpe: Readonly<
    Record<string, { readonly tokens: readonly string[]; readonly merges: readonly string[]; readonly ids: Ids }>
  >;
  readonly sentencepiece: Readonly<Record<"llama" | "gemma", Pieces & { readonly ids: Ids }>>;
}

const packed = await readFile(new URL("../data/tokenizers.json.gz", import.meta.url));
const { texts, bpe, sentencepiece }: Cases = JSON.parse(strFromU8(gunzipSync(packed)));

function checkIds(encode: (text: string) => readonly number[], expected: Ids): void {
  const different = texts.flatMap((text, i) => {
    const ids = encode(text);
    return ids.join() === expected[i].join() ? [] : [{ text, ids, expected: expected[i] }];
  });
  assert.deepEqual(different.slice(0, 5), [], `${different.length} of ${texts.length} texts differ`);
}

/** Names that stand for the same definition as another one. */
const SAME: Readonly<Record<string, string>> = {
  starcoder: "smollm",
  "deepseek-r1-qwen": "qwen2",
  llama3: "llama-bpe",
  "llama-v3": "llama-bpe",
};

for (const name of preTokenizerNames) {
  const { tokens, merges, ids } = bpe[SAME[name] ?? name];
  Deno.test(`byte-level BPE cut as ${name} gives the reference's ids on ${texts.length} texts`, () => {
    const tokenizer = tokenizerOf(
      new Map<string, unknown>([
        ["tokenizer.ggml.model", "gpt2"],
        ["tokenizer.ggml.pre", name],
        ["tokenizer.ggml.tokens", tokens],
        ["tokenizer.ggml.token_type", tokens.map(() => 1)],
        ["tokenizer.ggml.merges", merges],
        ["tokenizer.ggml.add_bos_token", false],
      ]),
    );
    checkIds((text) => tokenizer.encode(text), ids);
  });
}

/** A SentencePiece tokenizer as a GGUF describes it; `changes` replaces or removes (undefined) keys. */
function pieceTokenizer(name: keyof Cases["sentencepiece"], changes: Readonly<Record<string, unknown>> = {}) {
  const { tokens, scores, types, spacePrefix } = sentencepiece[name];
  const metadata = new Map<string, unknown>([
    ["tokenizer.ggml.model", "llama"],
    ["tokenizer.ggml.tokens", tokens],
    ["tokenizer.ggml.scores", Float32Array.from(scores)],
    ["tokenizer.ggml.token_type", types],
    ["tokenizer.ggml.add_space_prefix", spacePrefix],
    ["tokenizer.ggml.bos_token_id", tokens.indexOf("<s>")],
    ["tokenizer.ggml.eos_token_id", tokens.indexOf("</s>")],
  ]);
  for (const [key, value] of Object.entries(changes)) metadata.set(`tokenizer.ggml.${key}`, value);
  return tokenizerOf(metadata);
}

for (const name of ["llama", "gemma"] as const) {
  Deno.test(`SentencePiece gives the reference's ids on ${texts.length} texts (${name})`, () => {
    const tokenizer = pieceTokenizer(name);
    checkIds((text) => tokenizer.encode(text), sentencepiece[name].ids);
  });

  Deno.test(`SentencePiece ids become the text again, whole and as a stream (${name})`, () => {
    const tokenizer = pieceTokenizer(name);
    for (const text of texts.filter((each) => !each.includes("\u2581"))) {
      const ids = tokenizer.encode(text), stream = tokenizer.stream();
      const expected = name === "llama" && text !== "" ? ` ${text}` : text;
      assert.equal(tokenizer.decode(ids), expected);
      assert.equal(ids.map((id) => stream.push(id)).join("") + stream.end(), expected);
      assert.equal(tokenizer.countReplaced(text), 0);
    }
    assert.equal(tokenizer.countReplaced("a\ud800"), 1);
    assert.equal(tokenizer.decode(tokenizer.encode("a\ud800", {})).trim(), "a\ufffd");
  });
}

Deno.test("SentencePiece: a text never becomes a control token, a template's marker is one token", () => {
  const tokenizer = pieceTokenizer("llama"), end = tokenizer.idOf("</s>")!;
  assert.ok(tokenizer.endIds.has(end));
  assert.equal(tokenizer.firstId, tokenizer.idOf("<s>"));
  assert.ok(!tokenizer.encode("a</s>b<s>").some((id) => tokenizer.isControl(id)));
  const ids = tokenizer.encodeParts([{ text: "</s>", special: true }, { text: "</s>", special: false }]);
  assert.deepEqual([ids[0], ids.lastIndexOf(end)], [end, 0]);
});

Deno.test("SentencePiece: a text that goes on gets no space in front, one behind a marker does", () => {
  const tokenizer = pieceTokenizer("llama");
  const plain = { text: "whale", special: false }, marker = { text: "</s>", special: true };
  const begun = tokenizer.encodeParts([plain]);
  assert.equal(tokenizer.decode(begun), " whale");
  assert.equal(tokenizer.decode(tokenizer.encodeParts([plain], { continued: true })), "whale");
  assert.deepEqual(tokenizer.encodeParts([marker, plain], { continued: true }).slice(1), begun);
});

Deno.test("SentencePiece: metadata that would give wrong ids is refused by its key", () => {
  const { tokens, scores, types } = sentencepiece.llama;
  const cases: [string, Readonly<Record<string, unknown>>, RegExp][] = [
    ["tokenizer.ggml.scores", { scores: undefined }, /must be an array, not missing/],
    ["tokenizer.ggml.scores", { scores: scores.length }, /must be an array/],
    ["tokenizer.ggml.scores", { scores: [0] }, /one entry per token/],
    ["tokenizer.ggml.scores", { scores: tokens.map((_, i) => (i === 7 ? NaN : 0)) }, /entry 7 must be a finite number/],
    ["tokenizer.ggml.tokens", { tokens: tokens.map((t) => (t === "<0x0A>" ? "<0xZZ>" : t)) }, /no piece <0x0A>/],
    ["tokenizer.ggml.tokens", { token_type: tokens.map(() => 1) }, /no piece <0x00>/],
    ["tokenizer.ggml.tokens", { tokens: [...tokens.slice(0, -1), tokens[300]] }, /the same text/],
    ["tokenizer.ggml.token_type", { token_type: [...types as number[]].slice(1) }, /one entry per token/],
    ["tokenizer.ggml.add_space_prefix", { add_space_prefix: 1 }, /must be a boolean/],
  ];
  for (const [where, changes, problem] of cases) {
    assert.throws(() => pieceTokenizer("llama", changes), (error: Error & { where?: string }) => {
      return error.where === where && problem.test(error.message);
    }, `${where} ${problem}`);
  }
});
