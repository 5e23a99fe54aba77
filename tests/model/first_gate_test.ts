/** The gate that is fitted once for a model that has none, before its first long text is read. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { GATE_SUFFIX, gateFolder } from "../../model/gate/find.ts";
import { parseGate, writeGate } from "../../model/gate/file.ts";
import { FIRST_TOKENS, firstGate, LEAST_TEXT, wantsFirstGate } from "../../model/gate/first.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { openContext } from "../../model/session.ts";
import { contextIds } from "../../model/text/prompt.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { gateInfo, randomGate } from "../_helper/gate.ts";
import { palisade } from "../_helper/io.ts";

const SENTENCE = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ";
const DEFAULT = resolvePolicy("gate(combine=risk)");

async function opened(runtime: Runtime, name = "llama-plain"): Promise<Model> {
  const path = fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
  return await loadModel(path, runtime, { dense: "wasm", backend: "wasm" });
}

/** A text of so many tokens, or a few more. */
function textOf(model: Model, tokens: number): string {
  const each = model.tokenizer.encode(SENTENCE).length;
  const text = SENTENCE.repeat(Math.ceil(tokens / each) + 1);
  assert.ok(contextIds(model.frame, model.tokenizer, text).length >= tokens);
  return text;
}

/** A runtime whose cache folder is one of its own, removed afterwards. */
async function inFolder(body: (runtime: Runtime, gates: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "palisade-first-gate-")), real = await currentRuntime();
  const environment = (name: string) => name === "PALISADE_CACHE" ? folder : real.environment(name);
  const runtime = Object.assign(Object.create(real) as Runtime, { environment });
  try {
    await body(runtime, gateFolder(runtime));
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Places that were kept, of every head. */
function keptOf({ cache }: { readonly cache: { positions(layer: number, head: number): ArrayLike<number> } }): unknown {
  return [[0, 0], [0, 1], [1, 0], [1, 1]].map(([layer, head]) => Array.from(cache.positions(layer, head)));
}

Deno.test("the first long text that a model reads has a gate fitted, and the next finds it", async () => {
  await inFolder(async (runtime, gates) => {
    let steps: [number, number][] = [], kept: unknown;
    {
      await using model = await opened(runtime);
      const onFirstGate = (done: number, total: number) => steps.push([done, total]);
      using context = await openContext(model, textOf(model, LEAST_TEXT), { learn: true, onFirstGate });
      const { firstGate: figures, policy } = context, { layers } = model.config;
      assert.deepEqual([policy.name, policy.parameters], [DEFAULT.name, DEFAULT.parameters]);
      assert.equal(figures!.tokens, FIRST_TOKENS);
      assert.ok(figures!.stored && figures!.ms > 0);
      const texts = FIRST_TOKENS / 1024;
      assert.deepEqual(steps, Array.from({ length: texts * layers }, (_, i) => [i + 1, texts * layers]));
      const report = reportOf(model, context, [], { keepAsked: "20%", loadMs: 0 });
      assert.deepEqual(report.firstGate, { tokens: FIRST_TOKENS, ms: figures!.ms, stored: true, why: null });
      kept = keptOf(context);
      // The same model finds it, though it looked for one before there was any.
      using again = await openContext(model, textOf(model, LEAST_TEXT), { learn: true, onFirstGate });
      assert.deepEqual([again.policy.name, again.firstGate, keptOf(again)], ["gate", undefined, kept]);
      using named = await openContext(model, textOf(model, LEAST_TEXT), { policy: DEFAULT });
      assert.deepEqual(keptOf(named), kept);
    }
    const [file, ...others] = await readdir(gates);
    assert.deepEqual(others, []);
    const { info } = parseGate(await readFile(join(gates, file)), file);
    assert.deepEqual([info.calibration.tokens, info.conformal.scores], [FIRST_TOKENS, []]);
    steps = [];
    await using model = await opened(runtime);
    const onFirstGate = (done: number, total: number) => steps.push([done, total]);
    using context = await openContext(model, textOf(model, LEAST_TEXT), { onFirstGate });
    assert.deepEqual([context.policy.name, context.firstGate, steps], ["gate", undefined, []]);
    assert.deepEqual(keptOf(context), kept);
    assert.equal(reportOf(model, context, [], { keepAsked: "20%", loadMs: 0 }).firstGate, null);
    // It has no margins, as the refusal says.
    await assert.rejects(openContext(model, textOf(model, 600), { policy: "gate", riskWorst: 0.5 }), /calibrate/);
  });
});

Deno.test("no first gate is fitted for a short text, a policy that is named, all that stays, or where nothing may be left", async () => {
  await inFolder(async (runtime) => {
    await using model = await opened(runtime);
    const onFirstGate = () => assert.fail("a gate was fitted"), long = textOf(model, LEAST_TEXT);
    const policyOf = async (text: string, options: Parameters<typeof openContext>[2]) => {
      using context = await openContext(model, text, { refit: "none", onFirstGate, ...options });
      assert.equal(context.firstGate, undefined);
      return context.policy.name;
    };
    assert.equal(await policyOf(SENTENCE.repeat(20), { learn: true }), "self-gate");
    assert.equal(await policyOf(long, {}), "self-gate");
    assert.equal(await policyOf(long, { learn: true, policy: "layer-defensive" }), "layer-defensive");
    assert.equal(await policyOf(long, { learn: true, keep: "100%" }), "self-gate");
    assert.equal(await policyOf(long, { learn: true, keep: { tokens: 9999 } }), "self-gate");
    assert.equal(await policyOf(long, { learn: true, gate: randomGate(model.config) }), "gate");
    assert.ok(await wantsFirstGate(model, LEAST_TEXT, { learn: true }));
    assert.ok(!await wantsFirstGate(model, LEAST_TEXT - 1, { learn: true }));
    const withoutFiles = { ...model, runtime: { ...runtime, host: undefined } as Runtime };
    assert.ok(!await wantsFirstGate(withoutFiles, LEAST_TEXT, { learn: true }));
    // What is refused is refused before minutes of work.
    const refused = { learn: true, onFirstGate };
    await assert.rejects(openContext(model, long, { ...refused, keep: "0%" }), { code: "keep.range" });
    await assert.rejects(openContext(model, long.repeat(3), refused), { code: "context.too-long" });
  });
});

Deno.test("a gate of the user's own comes before the first one", async () => {
  await inFolder(async (runtime, gates) => {
    const long = await (async () => {
      await using model = await opened(runtime);
      await firstGate(model);
      const own = writeGate(gateInfo(model.config, await model.identity()), randomGate(model.config));
      await writeFile(join(gates, `own${GATE_SUFFIX}`), own);
      return textOf(model, LEAST_TEXT);
    })();
    assert.equal((await readdir(gates)).length, 2);
    await using model = await opened(runtime);
    assert.equal((await model.gate()).info.calibration.tokens, 100);
    using context = await openContext(model, long, { learn: true, refit: "none" });
    assert.deepEqual([context.policy.name, context.firstGate], ["gate", undefined]);
  });
});

Deno.test("a first gate that can't be kept serves its process, and one that is damaged is fitted anew", async () => {
  await inFolder(async (runtime, gates) => {
    await mkdir(join(gates, ".."), { recursive: true });
    await writeFile(gates, "a file where the folder should be");
    {
      await using model = await opened(runtime);
      const { fitted, gate } = await firstGate(model);
      assert.ok(fitted && !fitted.stored && fitted.why.length > 0, JSON.stringify(fitted));
      assert.deepEqual(await firstGate(model, { onFirstGate: () => assert.fail() }), { gate });
    }
    await rm(gates);
    for (const damaged of [false, true]) {
      await using model = await opened(runtime);
      assert.ok(await wantsFirstGate(model, LEAST_TEXT, { learn: true }));
      assert.ok((await firstGate(model)).fitted?.stored, `${damaged}`);
      const [file] = await readdir(gates);
      if (!damaged) await writeFile(join(gates, file), "half of it");
    }
  });
});

Deno.test("a stopped fit leaves nothing, and the next call begins anew", async () => {
  await inFolder(async (runtime, gates) => {
    await using model = await opened(runtime);
    const stop = new AbortController(), reason = new Error("enough");
    const stopping = { learn: true, signal: stop.signal, onFirstGate: () => stop.abort(reason) };
    await assert.rejects(openContext(model, textOf(model, LEAST_TEXT), stopping), reason);
    assert.deepEqual(await readdir(gates).catch(() => []), []);
    assert.ok((await firstGate(model)).gate);
    assert.equal((await readdir(gates)).length, 1);
  });
});

// Windows, other heads in them, convolutions, null logits and experts.
for (const name of ["gemma3-windows", "gemma4-keys", "lfm2-plain", "gpt-oss-plain", "qwen3moe-plain"]) {
  Deno.test(`a first gate is fitted for ${name}, and answers are given by it`, async () => {
    await inFolder(async (runtime) => {
      await using model = await opened(runtime, name);
      // By default one or two heads keep all of it, and nothing is fitted.
      const options = { learn: true, beyondTrained: true, keep: "20%" };
      using context = await openContext(model, textOf(model, LEAST_TEXT), options);
      assert.deepEqual([context.policy.name, context.firstGate?.stored], ["gate", true]);
      const { ids } = await context.ask("How many?", { maxTokens: 2 });
      assert.ok(ids.length > 0);
    });
  });
}

Deno.test("layers that share rows get no first gate", async () => {
  await inFolder(async (runtime) => {
    await using model = await opened(runtime, "gemma4-shared");
    assert.ok(!await wantsFirstGate(model, LEAST_TEXT, { learn: true }));
    const path = fileURLToPath(new URL("../data/models/gemma4-shared.gguf", import.meta.url));
    const { out } = await palisade(["doctor", "--model", path], { runtime });
    assert.match(out, /no {3}gate {11}none, and none can be fitted: its layers share rows/);
  });
});

Deno.test("ask fits a first gate and says so, once, unless it is told not to", async () => {
  await inFolder(async (runtime, gates) => {
    const path = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
    const context = join(gates, "..", "text.txt");
    await writeFile(context, SENTENCE.repeat(50));
    const engine = ["--dense", "wasm", "--backend", "wasm", "--max-tokens", "2", "--snapshots", "off"];
    const ask = async (interactive: boolean, ...more: string[]) => {
      const question = ["--context", context, "--question", "How many stakes?"];
      const told = await palisade(["ask", "--model", path, ...question, ...engine, ...more], { runtime, interactive });
      assert.equal(told.code, 0, told.err);
      return told;
    };
    const untold = JSON.parse((await ask(false, "--json", "--no-learn")).out);
    assert.deepEqual([untold.policy.name, untold.firstGate], ["self-gate", null]);
    assert.deepEqual(await readdir(gates).catch(() => []), []);
    const { err } = await ask(true);
    assert.match(err, /gate {5}fitted for this model on 2,048 tokens of built-in text, .*; kept for readings to come/);
    const next = JSON.parse((await ask(false, "--json", "--no-learn")).out);
    assert.deepEqual([next.policy.name, next.firstGate], ["gate", null]);
    const doctor = await palisade(["doctor", "--model", path], { runtime });
    assert.match(doctor.out, /gate\s+2,048 tokens, built in/);
  });
});
