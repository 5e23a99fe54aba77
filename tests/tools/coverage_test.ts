import assert from "node:assert/strict";
import { coverageByGroup, parseLcov } from "../../tools/coverage.ts";
import { ROOT } from "../../tools/repository.ts";

const lcov = (file: string, hits: string[]) =>
  [`SF:${ROOT}/${file}`, ...hits.map((hit, index) => `BRDA:1,1,${index},${hit}`), "end_of_record", ""].join("\n");

Deno.test("parseLcov() counts branches never reached as not taken", () => {
  const files = parseLcov(lcov("core/errors.ts", ["1", "0", "-", "10"]), ROOT);
  assert.deepEqual(files.get("core/errors.ts"), { branches: 4, taken: 2 });
});

Deno.test("coverageByGroup() fails below 90 %, without files, and for code no test loads", () => {
  const core = (text: string, files: string[]) => coverageByGroup(text, ROOT, files)[0];
  const nine = [...Array(9).fill("1"), "0"];
  assert.equal(core(lcov("core/errors.ts", nine), ["core/errors.ts"]).ok, true);
  assert.equal(core(lcov("core/errors.ts", [...nine, "0"]), ["core/errors.ts"]).ok, false);
  assert.equal(core("", []).ok, false);
  assert.deepEqual(core("", ["core/errors.ts"]).unloaded, ["core/errors.ts"]);
  assert.deepEqual(core("", ["core/policy/policy.ts"]).unloaded, [], "types only");
});
