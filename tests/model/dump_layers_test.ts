/** Layers of a dump: names, shapes, what policies lack, what is read. */
import assert from "node:assert/strict";
import { evictDump } from "../../core/dump/evict.ts";
import { evictLayers, type EvictOptions } from "../../core/dump/layers.ts";
import { PalisadeError } from "../../core/errors.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { Dump, type DumpOptions } from "../../model/dump/layers.ts";
import { findParts, parsePatterns } from "../../model/dump/names.ts";
import { openSource } from "../../model/dump/open.ts";
import type { DumpContainer } from "../../model/dump/tensors.ts";
import { writeSafetensors } from "../../model/file/safetensors.ts";
import { bufferSource } from "../../runtime/sources.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { readSafetensors } from "../_helper/golden.ts";
import { safetensorsOf } from "../_helper/numpy_files.ts";
import { GOLDEN_POLICIES, TINY_SHAPE, tinyLayers } from "../_helper/tiny.ts";

type Shaped = { readonly shape: readonly number[]; readonly data: Float32Array };
type Tensors = Record<string, Shaped>;

function zeros(...shape: number[]): Shaped {
  return { shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) };
}

function container(tensors: Tensors): Promise<DumpContainer> {
  const list = Object.entries(tensors).map(([name, each]) => ({ name, dtype: "F32" as const, ...each }));
  return openSource(bufferSource(writeSafetensors(list, {}), "dump.safetensors"));
}

async function open(tensors: Tensors, options: DumpOptions = {}): Promise<Dump> {
  return await Dump.open(await container(tensors), options);
}

async function keptBy(dump: Dump, policy: string, options: EvictOptions): Promise<number[][][]> {
  const resolved = resolvePolicy(policy);
  dump.prepare(resolved, options);
  const layers = await Array.fromAsync(evictLayers(resolved, dump, options));
  return layers.map(({ kept }) => kept.map((head) => [...head]));
}

async function refused(work: () => Promise<unknown>, code: string, message: RegExp): Promise<void> {
  await assert.rejects(work, (error) => {
    assert.ok(error instanceof PalisadeError, String(error));
    assert.equal(`${error.kind} ${error.code}`, `input dump.${code}`);
    assert.match(error.message, message);
    return true;
  });
}

const golden = await readSafetensors("tiny-L97.safetensors");
const PARTS_OF = ["q", "k", "v", "wo", "hidden", "wq"];

/** The golden layers under names of `name`; parts left out or changed by `change`. */
function tiny(
  name: (layer: number, part: string) => string,
  change: (tensor: Shaped, part: string) => Shaped | undefined,
) {
  const all: Tensors = {};
  for (const layer of [0, 1, 2]) {
    for (const part of PARTS_OF) {
      const tensor = change(golden.get(`layers/${layer}/${part}`)!, part);
      if (tensor) all[name(layer, part)] = tensor;
    }
  }
  return all;
}
const slashed = (layer: number, part: string) => `layers/${layer}/${part}`;

const layers = tinyLayers(golden, 97);
function wanted(policy: string, fraction = 0.3): number[][][] {
  const { kept } = evictDump(policy, { fraction }, TINY_SHAPE, layers);
  return kept.map((heads) => heads.map((head) => [...head]));
}

Deno.test("Dump gives the golden layers for every golden policy, queries from q or from hidden and wq", async () => {
  for (const policy of Object.values(GOLDEN_POLICIES)) {
    await using dump = await open(tiny(slashed, (tensor) => tensor), { rope: { theta: 10000 } });
    assert.deepEqual([dump.shape, dump.length, dump.layers], [TINY_SHAPE, 97, 3]);
    assert.deepEqual(await keptBy(dump, policy, { keep: { fraction: 0.3 } }), wanted(policy), policy);
  }
  const last = (rows: number) => ({ shape, data }: Shaped, part: string) => {
    if (part !== "q") return { shape, data };
    const cut = Array.from({ length: 6 }, (_, h) => [...data.subarray((h * 97 + 97 - rows) * 8, (h + 1) * 97 * 8)]);
    return rows === 0 ? undefined : { shape: [6, rows, 8], data: Float32Array.from(cut.flat()) };
  };
  for (const rows of [0, 40]) {
    for (const policy of ["h2o", "expected-attention", "triattention", "snapkv", "tova", "moved"]) {
      await using dump = await open(tiny(slashed, last(rows)), { rope: { theta: 10000 } });
      assert.deepEqual(await keptBy(dump, policy, { keep: { fraction: 0.3 } }), wanted(policy), `${policy} of ${rows}`);
    }
    await using dump = await open(tiny(slashed, last(rows)));
    await refused(() => keptBy(dump, "h2o", {}), "lacks", /policy h2o needs q, the queries of all 97 tokens/);
  }
  await using turned = await open(tiny(slashed, last(40)), { rope: { theta: 500, pairs: "interleaved", rotated: 4 } });
  await refused(
    () => keptBy(turned, "h2o", { keep: { fraction: 0.3 } }),
    "queries",
    /hidden and wq don't give the queries of layer 0/,
  );
});

Deno.test("Dump takes a batch of 1, all layers in one tensor, and other names", async () => {
  const keep = { fraction: 0.3 }, rope = { theta: 10000 };
  const one = ({ shape, data }: Shaped) => ({ shape: [1, ...shape], data });
  await using batched = await open(tiny(slashed, one));
  assert.deepEqual(await keptBy(batched, "snapkv", { keep }), wanted("snapkv"));
  const stacked: Tensors = {};
  for (const part of PARTS_OF) {
    const each = [0, 1, 2].map((layer) => golden.get(`layers/${layer}/${part}`)!);
    stacked[part] = { shape: [3, ...each[0].shape], data: Float32Array.from(each.flatMap(({ data }) => [...data])) };
  }
  await using all = await open(stacked, { rope });
  assert.deepEqual(await keptBy(all, "critical-adakv", { keep }), wanted("critical-adakv"));
  const other = (layer: number, part: string) => `model.${part}.of-${layer}.x`;
  const patterns = parsePatterns(PARTS_OF.map((part) => `${part}=model.${part}.of-{layer}.x`));
  await using named = await open(tiny(other, (tensor) => tensor), { patterns });
  assert.deepEqual(await keptBy(named, "layer-defensive", { keep }), wanted("layer-defensive"));
  const words: Record<string, string> = { k: "keys", v: "values", q: "queries" };
  const cached = (layer: number, part: string) => `layers.${layer}.${words[part] ?? part}`;
  await using cache = await open(tiny(cached, (tensor) => tensor));
  assert.deepEqual(await keptBy(cache, "defensive", { keep, explain: true }), wanted("defensive"));
  await using single = await open({ whatever: golden.get("layers/1/k")! });
  assert.deepEqual(await keptBy(single, "streaming-llm", { keep }), [wanted("streaming-llm")[1]]);
});

Deno.test("Dump.prepare() says what a policy lacks", async () => {
  const keysOnly = () => open({ "layers/4/k": zeros(2, 50, 4), "layers/5/k": zeros(2, 50, 4) });
  for (
    const [policy, message] of [
      [
        "snapkv",
        /policy snapkv needs q, the queries of the last 32 tokens: layer 4 of dump\.safetensors has k; it can serve full, random, streaming-llm, fasa$/,
      ],
      ["expected-attention", /all 50 tokens/],
      ["moved", /all 50 tokens/],
      ["triattention(statistics=calibrated)", /needs statistics of a model's queries/],
      ["lagkv", /needs v, the values/],
      ["kvzip", /needs reconstruction/],
      ["judge-q(file=x)", /needs softTokens/],
      ["gate", /needs gate, what a gate predicts/],
    ] as const
  ) {
    await using dump = await keysOnly();
    await refused(() => keptBy(dump, policy, {}), "lacks", message);
  }
  await using dump = await keysOnly();
  assert.deepEqual(dump.numbers, [4, 5]);
  await refused(() => keptBy(dump, "random", { risk: 0.1 }), "lacks", /^a risk needs q, the queries of the last 32/);
  await refused(() => keptBy(dump, "random", { explain: true }), "lacks", /^a certificate needs q, [^;]*$/);
  await using observed = await open({ "layers/0/k": zeros(2, 50, 4), "layers/0/q": zeros(4, 50, 4) });
  await refused(() => keptBy(observed, "random", { explain: true }), "lacks", /^a certificate needs v/);
  await refused(() => keptBy(observed, "expected-attention", {}), "rotation", /say how they were turned, rope/);
  await refused(() => keptBy(observed, "moved", {}), "rotation", /say how they were turned, rope/);
  await refused(() => keptBy(observed, "critical-adakv", {}), "lacks", /needs v/);
  await using weighed = await open({
    "layers/0/k": zeros(2, 50, 4),
    "layers/0/q": zeros(4, 50, 4),
    "layers/0/v": zeros(2, 50, 4),
  });
  await refused(() => keptBy(weighed, "critical-adakv", {}), "lacks", /needs wo, the output projection/);
  for (const policy of ["full", "random", "streaming-llm"]) {
    await using some = await keysOnly();
    assert.equal((await keptBy(some, policy, { keep: { tokens: 40 } })).length, 2, policy);
  }
});

Deno.test("Dump gives scores to the policies that need them", async () => {
  const falling = (kvHeads: number, length: number) => ({
    shape: [kvHeads, length],
    data: Float32Array.from({ length: kvHeads * length }, (_, i) => -(i % length)),
  });
  const parts: Tensors = { "layers/0/k": zeros(2, 80, 4), "layers/0/hidden": zeros(80, 3) };
  for (const part of ["gate", "reconstruction", "softTokens"]) parts[`layers/0/${part}`] = falling(2, 80);
  for (const policy of ["gate", "kvzip", "judge-q(file=x)"]) {
    await using dump = await open(parts);
    const [[first]] = await keptBy(dump, policy, { keep: { tokens: 50 } });
    assert.deepEqual(first.slice(0, 10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], policy);
  }
  const { "layers/0/gate": _, ...others } = parts;
  others["layers/0/hidden"] = {
    shape: [80, 3],
    data: Float32Array.from({ length: 240 }, (_, i) => -Math.floor(i / 3)),
  };
  const gate = { weights: Float32Array.of(1, 1, 1, 0, 0, -1), bias: Float32Array.of(0, 2) };
  const scores = Float32Array.from({ length: 160 }, (_, i) => i < 80 ? -3 * i : i - 80 + 2);
  await using byFile = await open(others, { gate });
  await using given = await open({ ...others, "layers/0/gate": { shape: [2, 80], data: scores } });
  const keep = { tokens: 50 };
  const byScores = await keptBy(given, "gate", { keep });
  assert.deepEqual(await keptBy(byFile, "gate", { keep }), byScores);
  assert.ok(byScores[0][1].length > byScores[0][0].length);
  await using wrong = await open(others, { gate: { ...gate, bias: Float32Array.of(1) } });
  await refused(
    () => keptBy(wrong, "gate", { keep: { tokens: 50 } }),
    "gate",
    /the dump has 1 layers, 2 KV heads and width 3/,
  );
});

Deno.test("Dump reads what is needed of a layer, a megabyte at a time", async () => {
  const L = 20_000,
    tensor = (shape: number[], at: number) => {
      const end = at + 4 * shape.reduce((a, b) => a * b, 1);
      return { dtype: "F32", shape, data_offsets: [at, end] };
    };
  const header: Record<string, unknown> = {};
  let at = 0;
  for (const layer of [0, 1, 2]) {
    for (const [part, shape] of [["k", [1, L, 32]], ["q", [1, L, 32]], ["v", [1, L, 32]]] as const) {
      header[`layers/${layer}/${part}`] = tensor([...shape], at);
      at += 4 * L * 32;
    }
  }
  const text = safetensorsOf(header), keys = 4 * L * 32, lead = text.length + 30;
  for (
    const [policy, wanted] of [["streaming-llm", 0], ["snapkv", 3 * (keys + 4 * 32 * 32)], ["knorm", 6 * keys]] as const
  ) {
    const source = new CountingSource(text, text.length + at);
    await using dump = await Dump.open(await openSource(source));
    assert.equal((await keptBy(dump, policy, { keep: { tokens: 100 } })).length, 3);
    assert.ok(source.totalBytes >= wanted && source.totalBytes <= wanted + lead, `${policy}: ${source.totalBytes}`);
    assert.ok(source.largestRead <= 2 ** 20);
  }
});

Deno.test("Dump counts what is not finite and reads on", async () => {
  const k = zeros(1, 60, 2), q = zeros(1, 60, 2);
  k.data[3] = NaN;
  k.data[9] = Infinity;
  q.data[119] = -Infinity;
  await using dump = await open({ "layers/7/k": k, "layers/7/q": q });
  assert.deepEqual(dump.notFinite(0), {});
  assert.equal((await keptBy(dump, "snapkv", { keep: { tokens: 40 } }))[0][0].length, 40);
  assert.deepEqual(dump.notFinite(0), { k: 2, q: 1 });
});

Deno.test("Dump refuses shapes that don't fit each other", async () => {
  const k = zeros(2, 10, 4);
  for (
    const [tensors, code, message] of [
      [{ "layers/0/k": zeros(10, 4) }, "shape", /k of dump\.safetensors is 10 × 4: want 3 dimensions/],
      [{ "layers/0/k": zeros(2, 2, 10, 4) }, "shape", /a batch of 1/],
      [{ "layers/0/k": zeros(2, 0, 4) }, "empty", /2 × 0 × 4: none/],
      [
        { "layers/0/k": k, "layers/1/k": zeros(2, 11, 4) },
        "shape",
        /k of layer 1 .* 2 × 11 × 4: want 2 × 10 × 4 as in the first/,
      ],
      [{ "layers/0/k": k, "layers/0/v": zeros(2, 10, 3) }, "shape", /v of layer 0 .* as the keys/],
      [{ "layers/0/k": k, "layers/0/q": zeros(3, 10, 4) }, "shape", /3 query heads .* don't divide over 2/],
      [{ "layers/0/k": k, "layers/0/q": zeros(4, 10, 5) }, "shape", /q of .* want 4 × tokens × 4/],
      [{ "layers/0/k": k, "layers/0/q": zeros(4, 0, 4) }, "shape", /q of .* want 4 × tokens × 4/],
      [{ "layers/0/k": k, "layers/0/q": zeros(4, 11, 4) }, "shape", /more than 10 tokens/],
      [{ "layers/0/k": k, "layers/0/q": zeros(4, 10, 4), "layers/0/wo": zeros(9, 8) }, "shape", /wo .* width × 16/],
      [{ "layers/0/k": k, "layers/0/wo": zeros(9, 10) }, "shape", /2.5 query heads/],
      [{ "layers/0/k": k, "layers/0/hidden": zeros(9, 8) }, "shape", /hidden .* 10 × width/],
      [
        { "layers/0/k": k, "layers/0/hidden": zeros(10, 8), "layers/0/wq": zeros(16, 7) },
        "shape",
        /wq .* the width of hidden/,
      ],
      [{ "layers/0/k": k, "layers/0/gate": zeros(1, 10) }, "shape", /gate .* want 2 × 10/],
      [{ k: zeros(10, 4) }, "shape", /want \[layers, KV heads/],
      [{ k: zeros(3, 2, 10, 4), v: zeros(2, 2, 10, 4) }, "shape", /v of .* of 3 layers/],
    ] as [Tensors, string, RegExp][]
  ) await refused(() => open(tensors), code, message);
  await refused(
    () => open({ k: zeros(2, 10, 4) }, { rope: { theta: 10, rotated: 6 } }),
    "rotation",
    /6 of 4 dimensions/,
  );
  await using square = await open({ "layers/0/k": k, "layers/0/wo": zeros(9, 8) });
  assert.equal(square.shape.heads, 2);
});

Deno.test("findParts() finds layers among other names, and says what is missing", () => {
  const found = (names: string[], asked = {}) => findParts(names, asked, "x");
  const of = (names: string[], asked = {}) => {
    const { layers, names: parts } = found(names, asked);
    return [
      layers,
      Object.fromEntries([...parts].map(([part, by]) => [part, typeof by === "string" ? by : [...by.values()]])),
    ];
  };
  assert.deepEqual(of(["scores/x", "layers/0/k", "layers/0/v", "layers/1/k"]), [[0, 1], {
    k: ["layers/0/k", "layers/1/k"],
    v: ["layers/0/v"],
  }]);
  assert.deepEqual(of(["layer_7/k", "layer_8/keys", "layer_8/values"]), [[7, 8], {
    k: ["layer_7/k", "layer_8/keys"],
    v: ["layer_8/values"],
  }]);
  assert.deepEqual(of(["part-1-of-2/layers/3/k", "part-2-of-2/layers/4/k"])[0], [3, 4]);
  assert.deepEqual(of(["k_10", "k_9", "v_9", "v_10"])[0], [9, 10]);
  assert.deepEqual(of(["past_key_values.0.key", "past_key_values.0.value"])[1], {
    k: ["past_key_values.0.key"],
    v: ["past_key_values.0.value"],
  });
  assert.deepEqual(of(["a", "b"], { k: "a" }), [undefined, { k: "a" }]);
  const refuse = (names: string[], message: RegExp, asked = {}) => assert.throws(() => found(names, asked), message);
  refuse(["layers/0/k", "layers/2/k"], /Layer 1 is missing in x: it has 0 and 2/);
  refuse(["layers/0/k", "layers/00/k"], /layer 0 twice: layers\/0\/k and layers\/00\/k/);
  refuse(["a", "b", "c", "d", "e", "f", "g"], /no keys in x: it has a, b, c, d, e, f and 1 more; name them/);
  refuse(["layers/0/k"], /no tensor cache\.\{layer\}/, { v: "cache.{layer}" });
  refuse(["layers/k", "layers/xk"], /no keys/);
  for (const text of ["k", "x=y", "k=", "k={layer}{layer}", "k=a,k=b", "=a"]) {
    assert.throws(() => parsePatterns([text]), /Can't read the pattern/, text);
  }
  assert.deepEqual(parsePatterns(["k=a{layer}, v=b", "wo=c"]), { k: "a{layer}", v: "b", wo: "c" });
});
