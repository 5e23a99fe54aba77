/** The tiny models of `tools/make_tiny_models.py`: configuration and weights give the logits of transformers. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import type { ModelConfig, Rope } from "../../model/config.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { readableTypes } from "../../model/file/tensor_types.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { oracleLogits } from "../_helper/oracle.ts";
import { plainDense } from "../_helper/plain_dense.ts";

const MODELS = ["llama-plain", "llama-linear", "llama-yarn", "llama3-factors", "qwen2-plain", "qwen2-yarn"];
const TOLERANCE = 2e-3;

interface Reference {
  readonly ids: number[];
  readonly positions: number[];
  readonly logits: number[][];
}

const data = new URL("../data/models/", import.meta.url);

async function open(name: string) {
  const gguf = await openGguf(new CountingSource(await readFile(new URL(`${name}.gguf`, data))));
  const reference: Reference = JSON.parse(await readFile(new URL(`${name}.logits.json`, data), "utf8"));
  return { gguf, config: await configOf(gguf), reference };
}

/** Largest difference from transformers when `config` is believed. */
async function difference(name: string, change: (config: ModelConfig) => ModelConfig = (config) => config) {
  const { gguf, config, reference: { ids, positions, logits } } = await open(name);
  await using dense = await plainDense(gguf, change(config));
  const ours = await oracleLogits(dense, ids, ids.length);
  const differences = positions.flatMap((position, i) =>
    logits[i].map((value, token) => Math.abs(ours[position * config.vocabulary + token] - value))
  );
  assert.equal(differences.length, positions.length * config.vocabulary);
  return Math.max(...differences);
}

for (const name of MODELS) {
  Deno.test(`configOf() and readFloat32() of ${name} give the logits of transformers`, async () => {
    const worst = await difference(name);
    assert.ok(worst <= TOLERANCE, `differs by ${worst}`);
  });
}

const PLAIN = (rope: Rope) => Float64Array.from(rope.frequencies, (_, j) => 10000 ** (-2 * j / rope.rotated));
const WRONG: Record<string, [name: string, change: (rope: Rope) => Partial<Rope>]> = {
  "linear scaling": ["llama-linear", (rope) => ({ frequencies: PLAIN(rope) })],
  "YaRN's frequencies": ["llama-yarn", (rope) => ({ frequencies: PLAIN(rope) })],
  "YaRN's frequencies for qwen2": ["qwen2-yarn", (rope) => ({ frequencies: PLAIN(rope) })],
  "YaRN's attention factor": ["llama-yarn", () => ({ magnitude: 1 })],
  "the llama 3 factors": ["llama3-factors", (rope) => ({ frequencies: PLAIN(rope) })],
  "llama's interleaved pairs": ["llama-plain", () => ({ pairs: "half" })],
  "qwen2's split pairs": ["qwen2-plain", () => ({ pairs: "interleaved" })],
};

for (const [what, [name, change]] of Object.entries(WRONG)) {
  Deno.test(`the logits of ${name} notice the loss of ${what}`, async () => {
    const worst = await difference(name, (config) => ({ ...config, rope: { ...config.rope, ...change(config.rope) } }));
    assert.ok(worst > 10 * TOLERANCE, `differs by ${worst} only`);
  });
}

Deno.test("the tiny models hold every supported tensor type, and heads that are tied and not", async () => {
  const opened = await Promise.all(MODELS.map(open));
  const types = new Set(opened.flatMap(({ gguf }) => [...gguf.tensors.values()].map((tensor) => tensor.type.name)));
  assert.deepEqual([...types].sort(), readableTypes().sort());
  assert.deepEqual(new Set(opened.map(({ config }) => config.tiedHead)), new Set([true, false]));
});
