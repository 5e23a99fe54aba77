import assert from "node:assert/strict";
import { importProblem, importsOf } from "../../tools/rooms.ts";

Deno.test("importsOf() finds every way to name a module", () => {
  const text = `import a from "a"; import type { B } from "./b.ts"; export * from "./c.ts"; await import("d");`;
  assert.deepEqual(importsOf(text).sort(), ["./b.ts", "./c.ts", "a", "d"]);
});

Deno.test("importProblem() lets rooms import what the design says", () => {
  const allowed = [
    ["core/policies/a.ts", "../select/select.ts"],
    ["core/cache/ragged.ts", "../../core/backend/interface.ts"],
    ["model/read/layers.ts", "../../core/cache/ragged.ts"],
    ["model/dense/ort/web.ts", "onnxruntime-web"],
    ["runtime/node.ts", "node:fs"],
    ["tests/a_test.ts", "../core/select/select.ts"],
  ];
  for (const [file, specifier] of allowed) assert.equal(importProblem(file, specifier), undefined);
});

Deno.test("importProblem() names what a room may not import", () => {
  const refused = [
    ["core/a.ts", "../wasm/module.ts"],
    ["core/a.ts", "fflate"],
    ["core/a.ts", "node:fs"],
    ["wasm/rows.ts", "../model/device.ts"],
    ["model/read/layers.ts", "../../cli/main.ts"],
    ["model/read/layers.ts", "node:fs"],
    ["cli/main.ts", "fs"],
    ["cli/main.ts", "npm:commander@14"],
    ["cli/main.ts", "../tests/_helper/skip.ts"],
    ["cli/main.ts", "../../elsewhere.ts"],
    ["newroom/a.ts", "./b.ts"],
  ];
  for (const [file, specifier] of refused) assert.match(importProblem(file, specifier) ?? "", RegExp(`^${file}: `));
});
