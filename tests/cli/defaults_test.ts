/** Defaults stand once, in the library: help prints them, and nothing said is the same as saying them. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { buildProgram } from "../../cli/program.ts";
import { DEFAULT_KEEP, DEFAULT_REFIT } from "../../cli/engine.ts";
import { DEFAULTS } from "../../mod.ts";
import { palisade, quietIo } from "../_helper/io.ts";
import { testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("defaults");
const book = join(folder, "book.txt");
await writeFile(book, "She counted seventeen stakes, and then she counted them again. ".repeat(4));
const ASK = [
  "ask",
  "--context",
  book,
  "--question",
  "How many?",
  "--model",
  TINY_MODEL,
  "--policy",
  "snapkv",
  "--json",
];

/** Options of `ask` that the library has a default for. */
const LIBRARY = {
  "--keep": DEFAULT_KEEP,
  "--positions": DEFAULTS.positions,
  "--cache-type": DEFAULTS.cacheType,
  "--refit": DEFAULT_REFIT,
  "--backend": DEFAULTS.backend,
  "--dense": DEFAULTS.dense,
  "--max-tokens": DEFAULTS.maxTokens,
  "--temperature": DEFAULTS.temperature,
  "--top-p": DEFAULTS.topP,
  "--seed": DEFAULTS.seed,
  "--step-policy": DEFAULTS.stepRule,
};

Deno.test("help of ask prints the library's defaults", async () => {
  const ask = (await buildProgram(await quietIo(), true, () => {})).commands.find((each) => each.name() === "ask")!;
  for (const [flag, value] of Object.entries(LIBRARY)) {
    const option = ask.options.find(({ long }) => long === flag)!;
    assert.equal(option.defaultValueDescription, String(value), flag);
    assert.equal(ask.getOptionValue(option.attributeName()), undefined, flag);
  }
});

Deno.test("ask told every default does what ask does untold", async () => {
  const { "--step-policy": _, "--keep": __, ...shown } = LIBRARY, alone = { ...shown, "--refit": DEFAULTS.refit };
  const told = Object.entries(alone).flatMap(([flag, value]) => [flag, String(value)]);
  const reports = [await palisade(ASK), await palisade([...ASK, ...told])].map(({ code, out, err }) => {
    assert.equal(code, 0, err);
    return { ...JSON.parse(out), ms: 0, memory: 0 };
  });
  assert.deepEqual(reports[1], reports[0]);
  assert.equal(reports[0].keep.asked, DEFAULTS.keep);
});

Deno.test("a risk takes the place of the default budget", async () => {
  const { code, out, err } = await palisade([...ASK, "--risk", "0.3"]);
  assert.equal(code, 0, err);
  const { keep, risk } = JSON.parse(out);
  assert.deepEqual([keep.asked, risk.asked], ["risk 0.3", 0.3]);
});

Deno.test("ask tells a LongRoPE model how long the text is", async () => {
  const phi = TINY_MODEL.replace(/[^/]+$/, "phi3-long.gguf"), text = join(folder, "short.txt");
  await writeFile(text, "A wall");
  const trained = async (context: string, maxTokens: string) => {
    const goOn = ["ask", "--context", context, "--question", "", "--model", phi, "--policy", "full", "--json"];
    const { code, out, err } = await palisade([...goOn, "--max-tokens", maxTokens]);
    assert.equal(code, 0, err);
    return JSON.parse(out).health.trained;
  };
  assert.equal(await trained(text, "2"), 64, "within the original context");
  assert.equal(await trained(text, "62"), 1024, "an answer that may go beyond it");
  assert.equal(await trained(book, "2"), 1024, "a text beyond it");
});
