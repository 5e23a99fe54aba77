/** Ids of 2,000 texts against the reference libraries (tools/make_tokenizer_cases.py wrote them). */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { gunzipSync, strFromU8 } from "fflate";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { preTokenizerNames } from "../../model/text/tokenizer/pretokenizers.ts";
import { type Pieces, SentencePieceModel } from "../../model/text/tokenizer/sentencepiece.ts";

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

for (const [name, model] of Object.entries(sentencepiece)) {
  Deno.test(`SentencePieceModel.encode() gives the reference's ids on ${texts.length} texts (${name})`, () => {
    const encoder = new SentencePieceModel(model);
    checkIds((text) => encoder.encode(text), model.ids);
  });
}
