/** The library names its options without dashes; the command line adds them, in one place. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { buildProgram } from "../../cli/program.ts";
import { failureText, flagOfOption } from "../../cli/failure.ts";
import { inputError, option, PalisadeError, say } from "../../core/errors.ts";
import { OPTION_NAMES } from "../../core/options.ts";
import { parseKeep } from "../../core/select/budget.ts";
import { repositoryFiles, ROOT } from "../../tools/repository.ts";
import { errorOf, failure } from "../../wasm/threads/message.ts";
import { quietIo } from "../_helper/io.ts";
import { join } from "node:path";

Deno.test("a refusal is said by the library without dashes, by the command line with them", () => {
  const error = inputError("a.b", say`shorten it, or pass ${option("beyondTrained")}`, option("context"));
  assert.deepEqual([error.where, error.option], ["context", "context"]);
  assert.equal(error.message, "shorten it, or pass beyondTrained");
  assert.equal(failureText(error), "--context: shorten it, or pass --beyond-trained");
});

Deno.test("an option that the message names is not named again in front", () => {
  const error = inputError("a.b", say`give ${option("maxCache.rule")} a name`, option("maxCache.rule"));
  assert.equal(failureText(error), "give --step-policy a name");
  assert.equal(failureText(inputError("a.b", "is torn", "a.gguf")), "a.gguf: is torn");
});

Deno.test("a command may call an option otherwise", () => {
  const names = { policy: "policies" };
  assert.equal(failureText(inputError("a.b", "is unknown", option("policy")), names), "--policies: is unknown");
});

Deno.test("what a user typed is never taken for an option", () => {
  assert.throws(() => parseKeep("policy"), (error) => {
    assert.ok(error instanceof PalisadeError);
    return /^--keep: Cannot read keep "policy"/.test(failureText(error));
  });
});

Deno.test("a refusal is the same behind a thread, and said again elsewhere", () => {
  const error = inputError("a.b", say`pass ${option("beyondTrained")}`, option("context"));
  for (const same of [errorOf(failure(error)), error.again({})]) {
    assert.ok(same instanceof PalisadeError);
    assert.deepEqual(same.plain(), error.plain());
  }
  const more = error.again({ more: " (twice)", where: "a.txt" });
  assert.equal(failureText(more), "a.txt: pass --beyond-trained (twice)");
  assert.equal(more.cause, error);
});

Deno.test("every option that the library names is one of the command line", async () => {
  const commands = (await buildProgram(await quietIo(), true, () => {})).commands;
  const flags = new Set(commands.flatMap(({ options }) => options.map(({ long }) => long)));
  const missing = OPTION_NAMES.filter((name) => !flags.has(flagOfOption(name)));
  assert.deepEqual(missing, ["topK"]);
});

/** Where others' command lines are spoken, or palisade's own as a whole. */
const COMMAND_LINES = new Set([
  "model/foresight/find.ts",
  "model/gate/find.ts",
  "model/gate/fit/text.ts",
  "model/policy_files/soft_tokens.ts",
  "model/statistics/find.ts",
  "model/store/pip.ts",
]);

Deno.test("nothing outside cli/ speaks command line", async () => {
  const rooms = /^(core|model|evaluate|wasm|gpu|web)\/.*\.ts$|^mod\.ts$/;
  const lines: string[] = [];
  for (const file of (await repositoryFiles()).filter((each) => rooms.test(each) && !COMMAND_LINES.has(each))) {
    const text = await readFile(join(ROOT, file), "utf8");
    text.split("\n").forEach((line, i) => /["'` ]--[a-z]/.test(line) && lines.push(`${file}:${i + 1}: ${line.trim()}`));
  }
  assert.deepEqual(lines, []);
});
