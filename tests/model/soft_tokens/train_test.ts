/** Training of soft tokens: gradients against PyTorch's and finite differences, and going on where a run was stopped. */
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../../core/errors.ts";
import { loadModel, type Model } from "../../../model/model.ts";
import type { CalibrationPlan } from "../../../model/gate/fit/plan.ts";
import { parseSoftTokens } from "../../../model/policy_files/soft_tokens.ts";
import { type SoftTokenOptions, trainSoftTokens } from "../../../model/soft_tokens/calibrate.ts";
import { readExample } from "../../../model/soft_tokens/examples.ts";
import { FrozenModel } from "../../../model/soft_tokens/frozen.ts";
import { adam, beginTraining, lossAndGradient } from "../../../model/soft_tokens/train.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import { assertClose } from "../../_helper/close.ts";
import { palisade } from "../../_helper/io.ts";

/** What PyTorch makes of it: tools/make_soft_token_gradients.py. */
interface Golden {
  readonly ids: readonly number[];
  readonly answer: readonly number[];
  readonly embeddings: readonly number[];
  readonly loss: number;
  readonly gradient: readonly number[];
}

const GOLDEN: Record<string, Golden> = JSON.parse(
  await readFile(new URL("../../data/soft_token_gradients.json", import.meta.url), "utf8"),
);

function pathOf(name: string): string {
  return fileURLToPath(new URL(`../../data/models/${name}.gguf`, import.meta.url));
}

async function tiny(name: string, dense: "web" | "wasm" = "web"): Promise<Model> {
  return await loadModel(pathOf(name), await currentRuntime(), { dense, backend: "wasm", precision: "float32" });
}

for (const [name, { ids, answer, embeddings, loss, gradient }] of Object.entries(GOLDEN)) {
  Deno.test(`loss and gradient of soft tokens are PyTorch's: ${name}`, async () => {
    await using model = await tiny(name);
    const example = await readExample(model, ids, { answer });
    const frozen = new FrozenModel(model.file, model.config);
    const got = await lossAndGradient(frozen, example, Float32Array.from(embeddings));
    assert.ok(Math.abs(got.loss - loss) < 1e-4 * loss, `${got.loss}, want ${loss}`);
    assertClose(got.gradient, gradient, 1e-3, "gradient");
  });
}

Deno.test("the gradient through biases and YaRN is the slope of the loss", async () => {
  for (const name of ["llama-biases", "llama-yarn"]) {
    await using model = await tiny(name);
    const { ids, answer } = GOLDEN["llama-plain"];
    const example = await readExample(model, ids, { answer }), frozen = new FrozenModel(model.file, model.config);
    const start = Float32Array.from({ length: 2 * model.config.width }, (_, i) => Math.sin(3 * i + 1) / 3);
    const { gradient } = await lossAndGradient(frozen, example, start);
    // Along the gradient itself, where the slope is its length.
    const size = Math.hypot(...gradient), step = 1e-2;
    const at = async (by: number) =>
      (await lossAndGradient(frozen, example, start.map((x, i) => x + by * gradient[i] / size))).loss;
    const slope = (await at(step) - await at(-step)) / (2 * step);
    assert.ok(Math.abs(slope - size) < 0.03 * size, `${name}: ${slope}, want ${size}`);
  }
});

Deno.test("models with experts or convolutions are refused, and counts that no file may hold", async () => {
  await using experts = await tiny("qwen3moe-plain", "wasm");
  assert.throws(() => new FrozenModel(experts.file, experts.config), { code: "calibrate.experts" });
  await using convolved = await tiny("lfm2-plain", "wasm");
  assert.throws(() => new FrozenModel(convolved.file, convolved.config), { code: "calibrate.convolutions" });
  await using model = await tiny("llama-plain");
  const options = { sha256: "0".repeat(64), count: 0, steps: 1 };
  await assert.rejects(trainSoftTokens(model, await currentRuntime(), PLAN, options), (error) => {
    return error instanceof PalisadeError && error.code === "calibrate.soft-tokens";
  });
});

Deno.test("adam() steps by the rate at first, against the gradient", () => {
  const state = adam(beginTraining(Float32Array.of(1, 1, 1)), Float32Array.of(5, -0.001, 0), 0.1);
  assertClose(state.embeddings, [0.9, 1.1, 1], 1e-5, "first step");
  // The second by hand: means 0.95 → 0.1·0.9·5 + 0.1·(−5), squares both 25.
  const second = adam(state, Float32Array.of(-5, 0, 0), 0.1);
  const mean = (0.9 * 0.5 - 0.5) / (1 - 0.81);
  assert.ok(Math.abs(second.embeddings[0] - (0.9 - 0.1 * mean / 5)) < 1e-5);
  assert.equal(second.step, 2);
});

/** Two short texts to train on, one held out. */
const PLAN: CalibrationPlan = {
  sources: ["a test"],
  seed: 1,
  fit: [GOLDEN["llama-plain"].ids, GOLDEN["llama-plain"].ids.toReversed()],
  heldOut: [GOLDEN["llama-plain"].ids.map((id, i) => i % 2 ? id : 40 + i)],
  shifted: [],
};

Deno.test("training gains on its texts, and goes on where it was stopped as if it had not been", async () => {
  const folder = await mkdtemp(join(tmpdir(), "palisade-soft-")), runtime = await currentRuntime();
  try {
    await using model = await tiny("llama-plain");
    const statePath = join(folder, "state"), options = { sha256: "0".repeat(64), count: 3, steps: 6, saveEveryMs: 0 };
    const train = (more: Partial<SoftTokenOptions> = {}) =>
      trainSoftTokens(model, runtime, PLAN, { ...options, ...more });
    const whole = await train();
    assert.equal(whole.embeddings.length, 3 * model.config.width);
    const frozen = new FrozenModel(model.file, model.config);
    const example = await readExample(model, PLAN.fit[0]);
    const first = (await train({ steps: 0 })).embeddings;
    const lossOf = async (embeddings: Float32Array) => (await lossAndGradient(frozen, example, embeddings)).loss;
    assert.ok(await lossOf(whole.embeddings) < 0.95 * await lossOf(first));
    assert.ok(whole.after.recall <= whole.after.best + 1e-6 && whole.before.recall > 0);

    const stop = new AbortController(), steps: number[] = [];
    const onProgress = (done: number) => {
      if (done === 3) stop.abort(new Error("stopped"));
    };
    await assert.rejects(train({ statePath, onProgress, signal: stop.signal }), /stopped/);
    const resumed = await train({ statePath, onProgress: (done) => steps.push(done) });
    assert.deepEqual(steps, [4, 5, 6]);
    assert.deepEqual(resumed, whole);
    // Another training's state, and what is none, are begun anew.
    for (const spoil of [undefined, "no state"]) {
      if (spoil) await writeFile(statePath, spoil);
      const again: number[] = [];
      await train({ statePath, count: 2, onProgress: (done) => again.push(done) });
      assert.equal(again[0], 1);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("palisade calibrate --kind judge-q writes soft tokens that judge-q takes", async () => {
  const folder = await mkdtemp(join(tmpdir(), "palisade-soft-")), out = join(folder, "soft.safetensors");
  try {
    const model = ["--model", pathOf("llama-plain"), "--backend", "wasm", "--dense", "web", "--threads", "1"];
    const line = ["calibrate", ...model, "--kind", "judge-q", "--soft-tokens", "2", "--steps", "2", "--tokens", "1000"];
    const made = await palisade([...line, "--out", out]);
    assert.equal(made.code, 0, made.err);
    assert.match(made.out, /soft tokens .*\n.*the answer itself[^]*judge-q\(file=/);
    const { info, embeddings } = parseSoftTokens(await readFile(out), out);
    assert.equal(embeddings.length, 2 * info.model.width);
    assert.match(info.trained, /^2 steps on /);
    assert.deepEqual(await readdir(folder), ["soft.safetensors"]);
    const json = await palisade([...line, "--out", out, "--json"]);
    const told = JSON.parse(json.out);
    assert.ok(told.before.loss > 0 && told.after.best > 0 && told.bytes > 0);
    const context = join(folder, "context.txt");
    await writeFile(context, "The keeper counted seventeen stakes, and then she counted them again. ".repeat(4));
    const policy = ["--policy", `judge-q(file=${out})`, "--keep", "50%", "--max-tokens", "2"];
    const answered = await palisade(["ask", ...model, "--context", context, "--question", "How many?", ...policy]);
    assert.equal(answered.code, 0, answered.err);
    // A file of something else is not written over.
    await writeFile(out, "somebody's letter, longer than eight bytes");
    assert.equal((await palisade([...line, "--out", out])).code, 3);
  } finally {
    await rm(folder, { recursive: true });
  }
});
