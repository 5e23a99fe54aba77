/** Soft tokens: their file, and that what they attend to is what the same tokens attend to on the ordinary way. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { PalisadeError } from "../../core/errors.ts";
import { modelHash } from "../../model/store/identity.ts";
import {
  checkSoftTokens,
  findSoftTokens,
  MAX_SOFT_TOKENS,
  parseSoftTokens,
  SOFT_TOKENS_SUFFIX,
  writeSoftTokens,
} from "../../model/policy_files/soft_tokens.ts";
import { fittedFor } from "../../model/policy_files/fitted_for.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { numbersOf } from "../_helper/host.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { writeSafetensors } from "../../model/file/safetensors.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { assertClose } from "../_helper/close.ts";
import { palisade } from "../_helper/io.ts";
import { randomSoftTokens, softTokensInfo } from "../_helper/soft_tokens.ts";
import { testFolder, TINY_MODEL, tinyModel } from "../_helper/workbench.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  12,
);

async function refusal(promise: Promise<unknown>): Promise<PalisadeError> {
  const error = await promise.then(() => undefined, (reason) => reason);
  assert.ok(error instanceof PalisadeError, `not refused: ${error}`);
  return error;
}

for (const architecture of ["llama-plain", "qwen2-plain"]) {
  for (const reduction of ["mean", "max"] as const) {
    Deno.test(`soft tokens that are words look at what those words look at: ${architecture}, ${reduction}`, async () => {
      const path = fileURLToPath(new URL(`../data/models/${architecture}.gguf`, import.meta.url));
      const engines = { dense: "web", backend: "wasm", precision: "float32" } as const;
      await using model = await loadModel(path, await currentRuntime(), engines);
      const { dense, backend, config, tokenizer, frame } = model;
      const ids = contextIds(frame, tokenizer, TEXT),
        words = tokenizer.encode(" How many stakes did the keeper count?");
      assert.ok(ids.length > 256 && words.length > 4);

      const needs = { softTokens: { reduction } };
      using judged = new RaggedCache(backend, config);
      const softTokens = numbersOf(await dense.embed(words));
      using reader = await LayerReader.open(model, judged, ids, { needs, window: 0, softTokens });
      using plain = new RaggedCache(backend, config);
      const window = words.length;
      using oracle = await LayerReader.open(model, plain, [...ids, ...words], { needs: { window: ["mean"] }, window });
      using alone = new RaggedCache(backend, config);
      using undisturbed = await LayerReader.open(model, alone, ids, { needs: {}, window: 0 });
      for (let layer = 0; layer < config.layers; layer++) {
        const { softTokens: got } = await reader.layer(layer);
        const { windowQueries } = await oracle.layer(layer);
        const seen = await plain.rows(layer).observe(windowQueries, window, {
          window: ["mean", "pooledMax"],
          kernel: 1,
        });
        assert.equal(got!.length, config.kvHeads * ids.length);
        assertClose(got!, reduction === "mean" ? seen.mean! : seen.pooledMax!, 1e-5, `layer ${layer}`);
        // They are gone again, and nothing else has seen them.
        await undisturbed.layer(layer);
        for (let head = 0; head < config.kvHeads; head++) {
          assert.equal(judged.length(layer, head), ids.length);
          assert.deepEqual(await judged.rows(layer).copyRows(head), await alone.rows(layer).copyRows(head));
        }
      }
      assert.deepEqual(await reader.lastHidden(), await undisturbed.lastHidden());
      assert.ok(reader.activationBytes >= undisturbed.activationBytes + softTokens.byteLength);
    });
  }
}

Deno.test("openContext() with judge-q keeps the budget and answers, by a policy of its own or inside another", async () => {
  await using model = await tinyModel();
  const softTokens = randomSoftTokens(model.config), { kvHeads, layers } = model.config;
  for (const policy of ["judge-q", "judge-q(reduce=max, window=8)", "adakv(judge-q)"]) {
    using context = await openContext(model, TEXT, { policy, keep: { tokens: 50 }, softTokens });
    assert.equal(context.cache.entries(), 50 * kvHeads * layers);
    assert.equal(context.cache.position, context.tokens);
    assert.ok((await context.ask("How many?", { maxTokens: 3 })).ids.length > 0);
  }
});

Deno.test("openContext() with judge-q refuses when there are no soft tokens, or no room for them", async () => {
  await using model = await tinyModel();
  const softTokens = randomSoftTokens(model.config), policy = "judge-q";
  const open = (options: ContextOptions, changed: Model = model) => openContext(changed, TEXT, options);
  const none = await refusal(open({ policy }));
  assert.deepEqual([none.code, none.where], ["soft-tokens.none", "policy"]);
  assert.match(none.message, /palisade calibrate --kind judge-q --model /);
  const tokens = contextIds(model.frame, model.tokenizer, TEXT).length;
  const config = { ...model.config, contextLength: tokens + 2 };
  const full = await refusal(open({ policy, softTokens }, { ...model, config }));
  assert.equal(full.code, "context.too-long");
  assert.match(full.message, new RegExp(`3 soft tokens .* need ${tokens + 3} positions.* on ${tokens + 2}`));
  using beyond = await open({ policy, softTokens, beyondTrained: true }, { ...model, config });
  assert.equal(beyond.tokens, tokens);
});

Deno.test("judge-q takes the soft tokens that were trained for the model, found by its hash", async () => {
  const folder = await testFolder("judge-q"), real = await currentRuntime(), gates = join(folder, "gates");
  const environment = (name: string) => name === "PALISADE_CACHE" ? folder : real.environment(name);
  const runtime = { ...real, environment };
  await using model = await loadModel(TINY_MODEL, runtime, { dense: "web", backend: "wasm", frame: "line" });
  const { config } = model, { embeddings } = randomSoftTokens(config), sha256 = await model.identity();
  const subject = { name: "tiny", config, identity: () => model.identity() };
  await assert.rejects(model.softTokens(), { code: "soft-tokens.none" });
  assert.deepEqual(await fittedFor(subject, { ...runtime, host: undefined }), []);
  await mkdir(gates);
  const file = (name: string) => join(gates, `${name}${SOFT_TOKENS_SUFFIX}`);
  await writeFile(file("a"), "no such file");
  await writeFile(file("b"), writeSoftTokens(softTokensInfo(config), embeddings.map((x) => -x)));
  await writeFile(file("c"), writeSoftTokens(softTokensInfo(config, sha256), embeddings));
  assert.deepEqual((await model.softTokens()).embeddings, embeddings);
  const kept = async (policy: string) => {
    using context = await openContext(model, TEXT, { policy, keep: "30%" });
    return [0, 1].map((layer) => [...context.cache.positions(layer, 0)]);
  };
  assert.deepEqual(await kept("judge-q"), await kept(`judge-q(file=${file("c")})`));
  assert.deepEqual(await fittedFor(subject, runtime), [{ policies: ["judge-q"], texts: ["not at all"] }]);
  const nobody = { ...subject, identity: () => Promise.resolve("f".repeat(64)) };
  await assert.rejects(findSoftTokens(nobody, runtime), { code: "soft-tokens.none" });
  await assert.rejects(findSoftTokens(nobody, runtime, file("c")), { code: "soft-tokens.model" });
});

const CONFIG = { name: "tiny", architecture: "llama", width: 4 } as const;
const INFO = softTokensInfo(CONFIG, "a".repeat(64));
const METADATA = (info: unknown) => ({
  palisade_soft_tokens: typeof info === "string" ? info : JSON.stringify(info),
});

/** A file with another tensor or other metadata. */
function fileWith(
  { shape = [2, 4], name = "embeddings", info = INFO as unknown, data }: {
    shape?: number[];
    name?: string;
    info?: unknown;
    data?: Float32Array;
  },
): Uint8Array {
  const count = shape.reduce((product, size) => product * size, 1);
  const tensor = { name, dtype: "F32", shape, data: data ?? new Float32Array(count) } as const;
  return writeSafetensors([tensor], info === "absent" ? {} : METADATA(info));
}

Deno.test("parseSoftTokens() reads what writeSoftTokens() wrote", () => {
  const embeddings = Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8);
  assert.deepEqual(parseSoftTokens(writeSoftTokens(INFO, embeddings), "x"), { name: "x", info: INFO, embeddings });
  assert.throws(() => writeSoftTokens(INFO, embeddings.subarray(1)), RangeError);
});

const REFUSED: [string, Parameters<typeof fileWith>[0], string][] = [
  ["another file", { info: "absent" }, "format"],
  ["metadata that are no JSON", { info: "{" }, "metadata"],
  ["metadata that are null", { info: null }, "format"],
  ["another version", { info: { ...INFO, format: 2 } }, "format"],
  ["no model", { info: { ...INFO, model: undefined } }, "metadata"],
  ["no hash", { info: { ...INFO, model: { ...INFO.model, sha256: "abc" } } }, "metadata"],
  ["a name that is none", { info: { ...INFO, model: { ...INFO.model, name: 7 } } }, "metadata"],
  ["nothing about training", { info: { ...INFO, trained: undefined } }, "metadata"],
  ["half a width", { info: { ...INFO, model: { ...INFO.model, width: 1.5 } } }, "metadata"],
  ["no width at all", { info: { ...INFO, model: { ...INFO.model, width: 0 } } }, "metadata"],
  ["another tensor", { name: "weights" }, "shape"],
  ["one row that is no matrix", { shape: [4] }, "shape"],
  ["one number", { shape: [] }, "shape"],
  ["another width", { shape: [2, 5] }, "shape"],
  ["no soft tokens", { shape: [0, 4] }, "shape"],
  ["too many", { shape: [MAX_SOFT_TOKENS + 1, 4] }, "shape"],
  ["a batch of them", { shape: [1, 2, 4] }, "shape"],
  ["numbers that are none", { data: new Float32Array(8).fill(NaN) }, "values"],
];

for (const [what, change, code] of REFUSED) {
  Deno.test(`parseSoftTokens() refuses ${what}`, () => {
    assert.throws(() => parseSoftTokens(fileWith(change), "my.safetensors"), (error) => {
      assert.ok(error instanceof PalisadeError, String(error));
      assert.deepEqual([error.kind, error.code, error.where], ["input", `soft-tokens.${code}`, "my.safetensors"]);
      return true;
    });
  });
}

Deno.test("checkSoftTokens() refuses another model's and names both", async () => {
  await using model = await tinyModel();
  const soft = randomSoftTokens(model.config), sha256 = "0".repeat(64);
  checkSoftTokens(soft, model.config, sha256);
  const refused = (config: typeof model.config, hash: string) =>
    assert.throws(() => checkSoftTokens(soft, config, hash), {
      code: "soft-tokens.model",
      message: /000000000000….* not for /,
    });
  refused(model.config, "b".repeat(64));
  refused({ ...model.config, width: 2 * model.config.width }, sha256);
  refused({ ...model.config, architecture: "qwen2" }, sha256);
});

Deno.test("ask --policy judge-q(file=…) reads the file, and refuses another model's", async () => {
  const folder = await mkdtemp(join(tmpdir(), "palisade-judge-"));
  try {
    await using model = await tinyModel();
    const [mine, other, book] = ["mine.safetensors", "other.safetensors", "book.txt"].map((name) => join(folder, name));
    const { embeddings } = randomSoftTokens(model.config), sha256 = await modelHash(TINY_MODEL, await currentRuntime());
    await writeFile(mine, writeSoftTokens(softTokensInfo(model.config, sha256), embeddings));
    await writeFile(other, writeSoftTokens(softTokensInfo(model.config), embeddings));
    await writeFile(book, TEXT);
    const ask = (file: string) =>
      palisade([
        ...["ask", "--context", book, "--question", "How many?", "--model", TINY_MODEL, "--dense", "web"],
        ...["--policy", `judge-q(file=${file}, window=8)`, "--keep", "20%", "--max-tokens", "2", "--json"],
      ]);
    const { code, out, err } = await ask(mine);
    assert.equal(code, 0, err);
    const { policy, cache } = JSON.parse(out);
    assert.deepEqual([policy.name, policy.file, policy.reduce], ["judge-q", mine, "mean"]);
    assert.ok(cache.evicted > 0);
    const refused = await ask(other);
    assert.deepEqual([refused.code, JSON.parse(refused.out).error.code], [3, "soft-tokens.model"]);
    assert.match(refused.err, /Can't use the soft tokens: they were trained for .*not for /);
    assert.match((await ask(join(folder, "none"))).err, /none/);
    const huge = join(folder, "huge.safetensors");
    await writeFile(huge, "");
    await truncate(huge, 2 ** 27 + 1);
    assert.equal((await refusal(model.softTokens(huge))).code, "soft-tokens.large");
  } finally {
    await rm(folder, { recursive: true });
  }
});
