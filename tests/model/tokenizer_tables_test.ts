/** The tables that tokenizers look texts up in, against Maps. */
import assert from "node:assert/strict";
import { Merges } from "../../model/text/tokenizer/merges.ts";
import { RememberedWords } from "../../model/text/tokenizer/remembered_words.ts";
import { placesFor, TokenIds } from "../../model/text/tokenizer/token_ids.ts";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { byteCharacters } from "../../model/text/tokenizer/byte_alphabet.ts";
import { randomSource } from "../../core/measure/random.ts";

Deno.test("TokenIds holds what a Map does, whatever is added and taken out", () => {
  const next = randomSource(11), letters = ["a", "b", "é", "▁", "🙂", "\ud800"];
  const texts = Array.from(
    { length: 400 },
    () => Array.from({ length: Math.floor(4 * next()) }, () => letters[Math.floor(6 * next())]).join(""),
  );
  const ids = new TokenIds(texts), map = new Map<string, number>();
  for (let step = 0; step < 4000; step++) {
    const id = Math.floor(400 * next()), text = texts[id];
    if (next() < 0.6) {
      ids.add(id);
      map.set(text, id);
    } else {
      ids.delete(text);
      map.delete(text);
    }
    const other = texts[Math.floor(400 * next())];
    assert.equal(ids.get(other), map.get(other));
    assert.equal(ids.has(other), map.has(other));
    assert.equal(ids.get(`x${other}yz`, 1, 1 + other.length), map.get(other), "a part of a text");
  }
});

Deno.test("a hash table has a power of two of places, at least twice what it holds", () => {
  assert.deepEqual([0, 1, 2, 3, 262144, 262145].map(placesFor), [2, 2, 4, 8, 524288, 1048576]);
  assert.equal(new TokenIds([]).get("a"), undefined);
});

Deno.test("Merges finds every pair's rank where it stands in a word, and no other", () => {
  const next = randomSource(5), letters = "abcd";
  const tokens = [...letters, ...Array.from(letters, (a) => Array.from(letters, (b) => a + b)).flat()];
  for (const three of tokens.slice(4)) for (const letter of letters) tokens.push(three + letter);
  const ids = new TokenIds(tokens);
  tokens.forEach((_, id) => ids.add(id));
  for (const repeated of ["first", "last"] as const) {
    const merges = new Merges(150, ids, tokens.length), ranks = new Map<string, number>(), made = new Set<string>();
    for (let rank = 0; rank < 150; rank++) {
      const text = tokens[4 + Math.floor((tokens.length - 4) * next())],
        at = 1 + Math.floor((text.length - 1) * next());
      const pair = `${text.slice(0, at)} ${text.slice(at)}`;
      merges.set(rank, text.slice(0, at), text.slice(at), ids.get(text)!, repeated);
      if (repeated === "last" || !ranks.has(pair)) ranks.set(pair, rank);
      made.add(text);
    }
    assert.ok(ranks.size < 150, "some come twice");
    for (const text of tokens) {
      assert.equal(merges.has(text), made.has(text), text);
      for (let at = 1; at < text.length; at++) {
        const rank = merges.rankOf(`_${text}_`, 1, 1 + at, 1 + text.length);
        assert.equal(rank, ranks.get(`${text.slice(0, at)} ${text.slice(at)}`), `${repeated} ${text} ${at}`);
        if (rank !== undefined) assert.equal(tokens[merges.madeBy(rank)], text);
      }
    }
    assert.equal(merges.rankOf("ez", 0, 1, 2), undefined);
    assert.equal(merges.has("ez"), false);
  }
});

Deno.test("Merges knows pairs of texts that no token has", () => {
  const tokens = ["xy", "xyx"], ids = new TokenIds(tokens);
  tokens.forEach((_, id) => ids.add(id));
  const merges = new Merges(2, ids, 2);
  merges.set(0, "x", "y", 0, "first");
  merges.set(1, "xy", "x", 1, "first");
  assert.deepEqual([[0, 1, 2], [0, 2, 3], [1, 2, 3]].map(([a, b, c]) => merges.rankOf("xyx", a, b, c)), [
    0,
    1,
    undefined,
  ]);
});

Deno.test("of equal pairs byte-level BPE takes the last, as the reference does", () => {
  const tokens = [...byteCharacters, "ab", "bc"];
  const texts = (merges: readonly string[]) => {
    const tokenizer = tokenizerOf(
      new Map<string, unknown>([
        ["tokenizer.ggml.model", "gpt2"],
        ["tokenizer.ggml.tokens", tokens],
        ["tokenizer.ggml.token_type", tokens.map(() => 1)],
        ["tokenizer.ggml.merges", merges],
      ]),
    );
    return tokenizer.encode("abc").map((id) => tokens[id]);
  };
  assert.deepEqual(texts(["a b", "b c"]), ["ab", "c"]);
  assert.deepEqual(texts(["a b", "b c", "a b"]), ["a", "bc"]);
});

Deno.test("RememberedWords makes each word once, but those that are long, and forgets all when there are too many", () => {
  const words = new RememberedWords<string>(), made: string[] = [];
  const of = (word: string) => words.of(word, (word) => (made.push(word), word.toUpperCase()));
  const long = "x".repeat(65);
  assert.deepEqual(["a", "a", "b", long, long].map(of), ["A", "A", "B", long.toUpperCase(), long.toUpperCase()]);
  assert.deepEqual(made.splice(0), ["a", "b", long, long]);
  words.clear();
  of("a");
  for (let i = 1; i < 65536; i++) of(`w${i}`);
  assert.equal(made.splice(0).length, 65536);
  of("a");
  assert.equal(made.length, 0);
  of("one more");
  of("a");
  assert.deepEqual(made, ["one more", "a"]);
});
