import assert from "node:assert/strict";
import process from "node:process";
import { runChild } from "../../tools/child.ts";

const evaluate = (code: string, options = {}) => runChild(process.execPath, ["eval", code], options);

Deno.test("runChild() gives code and output, and passes input on", async () => {
  const code = "console.log(await new Response(Deno.stdin.readable).text()); console.error('e'); Deno.exit(3)";
  const result = await evaluate(code, { input: "in", env: { NO_COLOR: "1" } });
  assert.deepEqual(result, { code: 3, stdout: "in\n", stderr: "e\n", killed: "" });
});

Deno.test("runChild() kills what takes too long or falls silent, and says which", async () => {
  const hang = "setInterval(() => {}, 1000)";
  assert.equal((await evaluate(hang, { timeout: 1 })).killed, "no end after 1 s");
  assert.equal((await evaluate(hang, { silence: 1 })).killed, "no output for 1 s");
});

Deno.test("runChild() reports a program that does not exist", async () => {
  const { code, killed } = await runChild("palisade-no-such-program", []);
  assert.equal(code, -1);
  assert.match(killed, /could not start/);
});
