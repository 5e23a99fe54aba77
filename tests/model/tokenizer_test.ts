import assert from "node:assert/strict";
import { randomSource } from "../../core/measure/random.ts";
import { codePointsOfLead } from "../../model/text/tokenizer/byte_alphabet.ts";
import { MAX_TEXT, MAX_WORD, refuseTooMuchText } from "../../model/text/tokenizer/text_limits.ts";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { tinyMetadata, type TinyOptions } from "../_helper/tiny_vocabulary.ts";

const SEED = 20260;

function tiny(options: TinyOptions = {}, changes: Record<string, unknown> = {}) {
  return tokenizerOf(new Map([...tinyMetadata(options), ...Object.entries(changes)]));
}

/** The texts of the tokens that `text` becomes. */
function pieces(tokenizer: ReturnType<typeof tiny>, text: string): string[] {
  return tokenizer.encode(text).map((id) => tokenizer.decode([id]));
}

const ODD = [
  "",
  " ",
  "  two  spaces \t\n\r\n\n",
  "don't, we'll, I'VE, 'tis",
  "naïve café, Straße, e\u0301",
  "你好，世界。こんにちは 안녕",
  "👍🏽 👩‍👩‍👧 🏳️‍🌈",
  "\ufeffmark \u0085 \u00a0 \u2028 \u0000",
  "{{ user }} {% raw %} <|start|> <|end|>> <|end|",
  "1234567890 ٣٤ ½ ①",
  "\\ \" ' ` $ ^ ~ __proto__",
];

Deno.test("encode() and decode() give back any well-formed text", () => {
  for (const pre of ["gpt-2", "smollm", "starcoder", "llama-bpe", "llama3", "llama-v3"]) {
    const tokenizer = tiny({ merges: ["a n", "d o", "Ġ Ġ"] }, { "tokenizer.ggml.pre": pre });
    for (const text of ODD) {
      assert.equal(tokenizer.decode(tokenizer.encode(text)), text, `${pre}: ${JSON.stringify(text)}`);
    }
  }
});

Deno.test("encode() normalises to NFC for qwen2 and for no other", () => {
  assert.equal(tiny({}, { "tokenizer.ggml.pre": "qwen2" }).countReplaced("e\u0301"), 0);
  const qwen2 = tiny({}, { "tokenizer.ggml.pre": "qwen2" });
  assert.equal(qwen2.decode(qwen2.encode("e\u0301")), "\u00e9");
  const gpt2 = tiny();
  assert.equal(gpt2.decode(gpt2.encode("e\u0301")), "e\u0301");
});

Deno.test("encode() cuts digits and contractions as the pre-tokenizer says", () => {
  const merges = ["1 2", "12 3", "123 4", "' S", "ĉ ĉ"];
  const of = (pre: string) => tiny({ merges }, { "tokenizer.ggml.pre": pre });
  assert.deepEqual(pieces(of("gpt-2"), "1234"), ["1234"]);
  assert.deepEqual(pieces(of("llama-bpe"), "1234"), ["123", "4"]);
  assert.deepEqual(pieces(of("qwen2"), "1234"), ["1", "2", "3", "4"]);
  assert.deepEqual(pieces(of("smollm"), "1234"), ["1", "2", "3", "4"]);
  assert.deepEqual(pieces(of("qwen2"), "'S"), ["'S"]);
  assert.deepEqual(pieces(of("gpt-2"), "'S"), ["'", "S"]);
});

Deno.test("encode() takes a whole word that is a token for llama-bpe only", () => {
  // "abc" is a token its letters never merge to: "b c" comes before "a b".
  const merges = ["b c", "a b", "ab c"];
  assert.deepEqual(pieces(tiny({ merges }, { "tokenizer.ggml.pre": "llama3" }), "abc"), ["abc"]);
  assert.deepEqual(pieces(tiny({ merges }), "abc"), ["a", "bc"]);
});

Deno.test("encode() applies merges by rank, leftmost first", () => {
  assert.deepEqual(pieces(tiny({ merges: ["a a", "aa a"] }), "aaaaa"), ["aa", "aaa"]);
});

Deno.test("encode() reads control tokens only when they are asked for", () => {
  const tokenizer = tiny();
  const end = tokenizer.idOf("<|end|>")!;
  assert.deepEqual(tokenizer.encode("<|end|>", { special: true }), [end]);
  const plain = tokenizer.encode("a <|end|> b<|start|>");
  assert.ok(plain.every((id) => !tokenizer.isControl(id)));
  assert.equal(tokenizer.decode(plain), "a <|end|> b<|start|>");
  assert.ok(tokenizer.isControl(end));
});

Deno.test("encode() takes the longest control token", () => {
  const tokenizer = tiny();
  assert.deepEqual(tokenizer.encode("<|end|>>", { special: true }), [tokenizer.idOf("<|end|>>")]);
});

Deno.test("encode() never merges plain text into a control token", () => {
  const options = { merges: ["s e", "se cret", "c r", "cr e", "cre t"], control: ["secret"] };
  for (const pre of ["gpt-2", "llama3"]) {
    const tokenizer = tiny(options, { "tokenizer.ggml.pre": pre });
    assert.deepEqual(pieces(tokenizer, "secret"), ["se", "cret"]);
    assert.deepEqual(tokenizer.encode("secret", { special: true }), [tokenizer.idOf("secret")]);
  }
});

Deno.test("encodeParts() joins words over the parts but not control tokens", () => {
  const tokenizer = tiny({ merges: ["a b"] });
  const part = (text: string, special: boolean) => ({ text, special });
  assert.deepEqual(tokenizer.encodeParts([part("a", true), part("b", false)]), [tokenizer.idOf("ab")]);
  const split = tokenizer.encodeParts([part("<|en", true), part("d|>", false), part("<|end|>", true)]);
  assert.equal(split.filter((id) => tokenizer.isControl(id)).length, 1);
  assert.equal(tokenizer.decode(split), "<|end|><|end|>");
  assert.deepEqual(tokenizer.encodeParts([]), []);
});

Deno.test("encode() takes user-defined tokens whole in any text", () => {
  const tokenizer = tiny({ userDefined: ["<tool>"] });
  assert.deepEqual(tokenizer.encode("<tool>"), [tokenizer.idOf("<tool>")]);
  assert.ok(!tokenizer.isControl(tokenizer.idOf("<tool>")!));
});

Deno.test("encode() writes U+FFFD for what has no bytes and countReplaced() counts it", () => {
  const tokenizer = tiny({ without: [0x04, 0xc0, 0xc3, 0xe2, 0xf1, 0xff] });
  const text = "a\u0004\u00e9\u20ac\u{40000}\ud800b👍";
  assert.equal(tokenizer.decode(tokenizer.encode(text)), "a\ufffd\ufffd\ufffd\ufffd\ufffdb👍");
  assert.equal(tokenizer.countReplaced(text), 5);
  assert.equal(tiny().countReplaced("a\udc00"), 1);
  assert.equal(tiny().countReplaced("plain 👍"), 0);
});

Deno.test("codePointsOfLead() covers every code point exactly once", () => {
  const ranges = Array.from({ length: 256 }, (_, byte) => codePointsOfLead(byte)).filter((range) =>
    range !== undefined
  );
  assert.equal(ranges[0][0], 0);
  for (let i = 1; i < ranges.length; i++) assert.equal(ranges[i][0], ranges[i - 1][1] + 1);
  assert.equal(ranges.at(-1)![1], 0x10ffff);
  for (const lead of [0xc3, 0xe0, 0xed, 0xf0, 0xf4]) {
    const [first, last] = codePointsOfLead(lead)!;
    for (const codePoint of [first, last].filter((c) => c < 0xd800 || c > 0xdfff)) {
      assert.equal(new TextEncoder().encode(String.fromCodePoint(codePoint))[0], lead);
    }
  }
});

Deno.test("encode() takes long runs and long words", () => {
  const tokenizer = tiny({ merges: ["a a", "aa aa", "Ġ Ġ"] });
  for (const text of ["a", " ", "👍", "word, "].map((unit) => unit.repeat(200_000 / unit.length))) {
    assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
  }
});

Deno.test("encode() refuses what would take all memory, and says where", () => {
  const refused = (text: string, code: string, message: RegExp) =>
    assert.throws(() => tiny().encode(text), {
      name: "PalisadeError",
      kind: "input",
      code,
      where: "context",
      message,
    });
  refused("a ".repeat(MAX_TEXT / 2) + "a", "text.too-large", /16777217/);
  refused(
    "some words " + "x".repeat(MAX_WORD + 1),
    "text.endless-word",
    /than 1048576 characters without a space or line break, from "x{20}" on$/,
  );
  refused(
    "word" + "\n ".repeat(MAX_WORD / 2 + 1),
    "text.endless-word",
    /than 1048576 spaces and line breaks in a row$/,
  );
});

Deno.test("refuseTooMuchText() lets the longest text and word pass", () => {
  refuseTooMuchText("");
  refuseTooMuchText("x".repeat(MAX_WORD));
  refuseTooMuchText(" x".repeat(3) + " " + "x".repeat(MAX_WORD) + "\t\r\n" + "y".repeat(MAX_WORD));
  refuseTooMuchText("a ".repeat(MAX_TEXT / 2));
});

Deno.test("encode() makes the same tokens of a long text as of its paragraphs", () => {
  const tokenizer = tiny({ merges: ["t h", "th e", "Ġ the"] });
  const paragraph = "the cat, the dog; the end.";
  const ids = tokenizer.encode(paragraph);
  const newline = tokenizer.encode("\n");
  const long = tokenizer.encode(Array.from({ length: 8000 }, () => paragraph).join("\n"));
  assert.deepEqual(long.slice(0, ids.length), ids);
  assert.equal(long.length, 8000 * (ids.length + newline.length) - newline.length);
});

Deno.test("stream() gives the text of decode() in well-formed pieces", () => {
  const random = randomSource(SEED);
  const tokenizer = tiny({ merges: ["ð Ł", "ðŁ ĳ"], userDefined: ["née"] });
  for (let run = 0; run < 300; run++) {
    const ids = Array.from({ length: Math.floor(random() * 40) }, () => Math.floor(random() * tokenizer.vocabulary));
    const stream = tokenizer.stream();
    let streamed = "";
    for (const id of ids) {
      const piece = stream.push(id);
      assert.ok(piece.isWellFormed());
      streamed += piece;
    }
    assert.equal(streamed + stream.end(), tokenizer.decode(ids), `seed ${SEED}, run ${run}: ${ids}`);
  }
});

Deno.test("stream() holds a character back until its last byte", () => {
  const tokenizer = tiny();
  const stream = tokenizer.stream();
  const ids = tokenizer.encode("👍a");
  assert.deepEqual(ids.map((id) => stream.push(id)), ["", "", "", "👍", "a"]);
  assert.equal(stream.push(ids[0]), "");
  assert.equal(stream.end(), "\ufffd");
  assert.equal(stream.push(ids[4]), "a");
});

Deno.test("decode() writes control and foreign tokens as they are", () => {
  const metadata = tinyMetadata({ control: ["é|"] });
  const tokens = [...metadata.get("tokenizer.ggml.tokens") as string[], "[PAD 1]"];
  metadata.set("tokenizer.ggml.tokens", tokens);
  metadata.set("tokenizer.ggml.token_type", [...metadata.get("tokenizer.ggml.token_type") as Int32Array, 5]);
  const tokenizer = tokenizerOf(metadata);
  assert.equal(tokenizer.decode([tokenizer.idOf("é|")!, tokens.length - 1]), "é|[PAD 1]");
});

Deno.test("decode() throws RangeError for an id outside the vocabulary", () => {
  const tokenizer = tiny();
  for (const id of [-1, tokenizer.vocabulary, 1.5, NaN]) assert.throws(() => tokenizer.decode([id]), RangeError);
});

Deno.test("tokenizerOf() ends an answer at the ids the file names and at known end tokens", () => {
  const named = tiny({ control: ["<|eot_id|>", "<|x|>", "<|y|>"] });
  const ids = ["<|end|>", "<|eot_id|>"].map((token) => named.idOf(token));
  assert.deepEqual(new Set(named.endIds), new Set(ids));
  const more = tiny({ control: ["<|x|>", "<|y|>"] }, {
    "tokenizer.ggml.eot_token_id": BigInt(named.idOf("<|x|>")! - 1),
    "tokenizer.ggml.eom_token_id": named.idOf("<|y|>")! - 1,
  });
  assert.deepEqual(
    new Set(more.endIds),
    new Set(["<|end|>", "<|x|>", "<|y|>"].map((token) => more.idOf(token))),
  );
  // Whatever its type, unless ordinary text merges to it.
  const typed4 = tiny({ userDefined: ["</s>"] });
  assert.ok(typed4.endIds.has(typed4.idOf("</s>")!));
  const word = tiny({ merges: ["< /", "</ s", "</s >"] });
  assert.ok(!word.endIds.has(word.idOf("</s>")!));
  assert.ok(!word.isControl(word.idOf("</s>")!));
});

Deno.test("tokenizerOf() begins sequences as the file or the pre-tokenizer says", () => {
  const start = tiny().idOf("<|start|>");
  const silent = (pre: string) => tiny({}, { "tokenizer.ggml.add_bos_token": undefined, "tokenizer.ggml.pre": pre });
  assert.equal(tiny().firstId, undefined);
  assert.equal(tiny({}, { "tokenizer.ggml.add_bos_token": true }).firstId, start);
  assert.equal(silent("gpt-2").firstId, undefined);
  assert.equal(silent("llama-bpe").firstId, start);
  assert.equal(tiny().bosText, "<|start|>");
  assert.equal(tiny().eosText, "<|end|>");
});

Deno.test("tokenizerOf() does without BOS, EOS and a pre-tokenizer's name", () => {
  const tokenizer = tiny({ merges: ["1 2"] }, {
    "tokenizer.ggml.pre": undefined,
    "tokenizer.ggml.bos_token_id": undefined,
    "tokenizer.ggml.eos_token_id": undefined,
    "tokenizer.ggml.add_bos_token": undefined,
  });
  assert.deepEqual(pieces(tokenizer, "12"), ["12"]);
  assert.equal(tokenizer.bosText + tokenizer.eosText, "");
  assert.deepEqual([...tokenizer.endIds], [tokenizer.idOf("<|end|>")]);
});

Deno.test("encode() reads no control token where there are none", () => {
  const metadata = tinyMetadata();
  const tokens = (metadata.get("tokenizer.ggml.tokens") as string[]).slice(0, 256);
  metadata.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", tokens.map(() => 1));
  metadata.set("tokenizer.ggml.eos_token_id", undefined).set("tokenizer.ggml.bos_token_id", undefined);
  const tokenizer = tokenizerOf(metadata);
  assert.equal(tokenizer.decode(tokenizer.encode("<|end|>", { special: true })), "<|end|>");
  assert.ok(tokenizer.encode("<|end|>", { special: true }).length > 1);
});

/** The vocabulary of `tiny()` with more tokens at the end, `[text, type]`. */
function extended(more: readonly (readonly [string, number])[], changes: Record<string, unknown> = {}) {
  const metadata = tinyMetadata({ merges: ["a n"] });
  metadata.set("tokenizer.ggml.tokens", [
    ...metadata.get("tokenizer.ggml.tokens") as string[],
    ...more.map(([t]) => t),
  ]);
  metadata.set("tokenizer.ggml.token_type", [
    ...metadata.get("tokenizer.ggml.token_type") as Int32Array,
    ...more.map(([, type]) => type),
  ]);
  return tokenizerOf(new Map([...metadata, ...Object.entries(changes)]));
}

Deno.test("tokenizerOf() takes empty and repeated tokens that no text becomes, and says so", () => {
  const tokenizer = extended([
    ["", 5],
    ["", 1],
    ["[PAD]", 5],
    ["[PAD]", 5],
    ["[OLD]", 1],
    ["[OLD]", 1],
    ["a", 5],
    ["an", 2],
    ["<x>", 5],
    [
      "<x>",
      3,
    ],
  ]);
  assert.equal(tokenizer.notices.length, 7);
  for (const { where } of tokenizer.notices) assert.equal(where, "tokenizer.ggml.tokens");
  assert.deepEqual(tokenizer.encode("an a"), tiny({ merges: ["a n"] }).encode("an a"));
  assert.deepEqual(tokenizer.encode("<x>", { special: true }), [tokenizer.vocabulary - 1]);
  assert.equal(tokenizer.decode([260]), "");
});

Deno.test("tokenizerOf() refuses a second token for a text that counts", () => {
  for (const [text, type] of [["a", 1], ["an", 1], ["<|end|>", 3], ["<|end|>", 1]] as const) {
    assert.throws(
      () => extended([[text, type]]),
      { where: "tokenizer.ggml.tokens", message: /are the same text/ },
      text,
    );
  }
});

Deno.test("tokenizerOf() takes an id out of range where another token does its work, and says so", () => {
  const eos = tiny({ control: ["<|im_end|>"] }, { "tokenizer.ggml.eos_token_id": 9999 });
  assert.ok(eos.endIds.has(eos.idOf("<|im_end|>")!));
  assert.match(eos.notices[0].text, /no token 9999; answers end at/);
  assert.equal(eos.eosText, "");
  const eom = tiny({}, { "tokenizer.ggml.eom_token_id": 9999 });
  assert.equal(eom.notices[0].where, "tokenizer.ggml.eom_token_id");
  assert.match(tiny({}, { "tokenizer.ggml.bos_token_id": 259 }).notices[0].text, /begin without it/);
  assert.deepEqual(tiny().notices, []);
});

/** Each: what is changed, the code, and a word the message must have; the key changed is the `where`. */
const REFUSED: [key: string, value: unknown, code: string, word: RegExp][] = [
  ["model", undefined, "tokenizer.metadata", /missing/],
  ["model", 7, "tokenizer.metadata", /a number/],
  ["model", "t5", "tokenizer.model", /"t5".*gpt2/],
  ["model", "x".repeat(10_000), "tokenizer.model", /x{100}"/],
  ["pre", "poro-chat", "tokenizer.pre", /"poro-chat".*gpt-2, smollm.*qwen2.*llama-bpe/],
  ["pre", 3, "tokenizer.metadata", /string/],
  ["tokens", undefined, "tokenizer.metadata", /missing/],
  ["tokens", "abc", "tokenizer.metadata", /array/],
  ["tokens", new DataView(new ArrayBuffer(8)), "tokenizer.metadata", /array/],
  ["tokens", [], "tokenizer.metadata", /1 to/],
  ["tokens", new Uint8Array(2 ** 20 + 1), "tokenizer.metadata", /1048577/],
  ["tokens", ["a", 4], "tokenizer.metadata", /token 1 /],
  ["tokens", ["a", null], "tokenizer.metadata", /token 1 .*missing/],
  ["tokens", ["a", ["b"]], "tokenizer.metadata", /token 1 .*an array/],
  ["tokens", ["a".repeat(4097)], "tokenizer.metadata", /4097/],
  ["token_type", undefined, "tokenizer.metadata", /missing/],
  ["token_type", [1, 2, 3], "tokenizer.metadata", /per token/],
  ["token_type", new Float32Array(259).fill(1.5), "tokenizer.metadata", /entry 0/],
  ["token_type", new Int32Array(259).fill(7), "tokenizer.metadata", /7/],
  ["token_type", new Int32Array(259).fill(-1), "tokenizer.metadata", /-1/],
  ["token_type", Array.from({ length: 259 }, () => "one"), "tokenizer.metadata", /one/],
  ["merges", undefined, "tokenizer.metadata", /missing/],
  ["merges", [1], "tokenizer.metadata", /merge 0/],
  ["merges", ["ab"], "tokenizer.metadata", /"ab"/],
  ["merges", [" b"], "tokenizer.metadata", /two parts/],
  ["merges", ["a "], "tokenizer.metadata", /two parts/],
  ["merges", ["a b c"], "tokenizer.metadata", /two parts/],
  ["merges", ["q z"], "tokenizer.metadata", /not a token/],
  ["merges", Array.from({ length: 5000 }, () => "a b"), "tokenizer.metadata", /5000/],
  ["bos_token_id", "0", "tokenizer.metadata", /token id/],
  ["eos_token_id", "2", "tokenizer.metadata", /token id/],
  ["add_bos_token", 1, "tokenizer.metadata", /boolean/],
];

for (const [name, value, code, word] of REFUSED) {
  const key = `tokenizer.ggml.${name}`;
  const shown = (Array.isArray(value) ? JSON.stringify(value) : String(value)).slice(0, 30);
  Deno.test(`tokenizerOf() refuses ${key} = ${shown} (${word.source})`, () => {
    assert.throws(() => tiny({}, { [key]: value }), {
      name: "PalisadeError",
      kind: "input",
      code,
      where: key,
      message: word,
    });
  });
}

/** Nothing else begins a sequence, or ends an answer. */
const ALONE: [name: string, value: unknown, word: RegExp][] = [
  ["bos_token_id", 259, /0 to 258/],
  ["eos_token_id", -1, /-1/],
  ["eos_token_id", 1.5, /1.5/],
  ["eos_token_id", 2n ** 64n - 1n, /18446744073709551615/],
  ["eot_token_id", NaN, /NaN/],
  ["eom_token_id", 9999, /9999/],
];

for (const [name, value, message] of ALONE) {
  const key = `tokenizer.ggml.${name}`;
  Deno.test(`tokenizerOf() refuses ${key} = ${value} where no other token does its work`, () => {
    const metadata = tinyMetadata();
    const tokens = (metadata.get("tokenizer.ggml.tokens") as string[]).map((text) => text.replace("<|end|>", "<|e|>"));
    metadata.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.eos_token_id", undefined);
    metadata.set("tokenizer.ggml.add_bos_token", name === "bos_token_id").set(key, value);
    assert.throws(() => tokenizerOf(metadata), { code: "tokenizer.metadata", where: key, message });
  });
}

Deno.test("tokenizerOf() refuses a vocabulary without a byte that texts need", () => {
  for (const byte of [0x0a, 0x20, 0x41, 0x7e, 0x80, 0xbf, 0xef]) {
    assert.throws(() => tiny({ without: [byte] }), {
      code: "tokenizer.metadata",
      where: "tokenizer.ggml.tokens",
      message: new RegExp(`0x${byte.toString(16)}$`),
    });
  }
});

Deno.test("tokenizerOf() refuses to begin sequences with a BOS token that isn't named", () => {
  const changes = { "tokenizer.ggml.add_bos_token": true, "tokenizer.ggml.bos_token_id": undefined };
  assert.throws(() => tiny({}, changes), { code: "tokenizer.metadata", where: "tokenizer.ggml.bos_token_id" });
});

Deno.test("tokenizerOf() takes tokens named like members of objects", () => {
  const tokenizer = tiny({ userDefined: ["__proto__", "constructor"] });
  assert.deepEqual(tokenizer.encode("__proto__"), [tokenizer.idOf("__proto__")]);
  assert.equal(tokenizer.idOf("toString"), undefined);
});
