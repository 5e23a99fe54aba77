import assert from "node:assert/strict";
import { judgeEngine, widenVectors, wideVectors } from "../../runtime/wide_vectors.ts";

const NODE_26 = { arch: "x64", execArgv: [], versions: { v8: "14.6.202.34-node.20" } };

Deno.test("vectors are joined where that was tried: in Node 26 on x64", () => {
  assert.equal(judgeEngine(NODE_26, "node").on, true);
  const others = [
    ["14.5.9-node.1", "x64", "node"],
    ["13.6.233.17-node.53", "x64", "node"],
    ["11.3.244.8-node.38", "x64", "node"],
    ["15.0.245.2-rusty", "x64", "node"],
    ["16.1.1-node.1", "x64", "node"],
    ["14.6.202.34-node.20", "arm64", "node"],
    ["14.6.202.34-node.20", "x64", "bun"],
    ["14.6.202.34-node.20", "x64", "deno"],
    [undefined, "x64", "node"],
  ] as const;
  for (const [v8, arch, runtime] of others) {
    const judged = judgeEngine({ arch, execArgv: [], versions: { v8 } }, runtime);
    assert.deepEqual(
      [judged.on, /^none: .*Node 26 on x64/.test(judged.text)],
      [false, true],
      `${runtime} ${v8} ${arch}`,
    );
  }
});

Deno.test("who forbids Node to join vectors is obeyed", () => {
  const { on, text } = judgeEngine({ ...NODE_26, execArgv: ["--no-experimental-wasm-revectorize"] }, "node");
  assert.deepEqual([on, text], [false, "none: --no-experimental-wasm-revectorize was given"]);
});

Deno.test("the engine is told where it is right, and who asks is told", () => {
  const flags: string[] = [];
  assert.match(wideVectors().text, /nothing asked/);
  // As in a program of one's own, which Node was told to join vectors for.
  const asked = { ...NODE_26, execArgv: ["--experimental-wasm-revectorize"] };
  assert.equal(wideVectors(asked, "node").on, true);
  assert.equal(wideVectors({ ...asked, versions: { v8: "13.6.1-node.1" } }, "node").on, false);
  assert.equal(wideVectors(NODE_26, "node").on, false);
  assert.equal(widenVectors(NODE_26, (flag) => flags.push(flag)).on, false);
  assert.deepEqual(flags, [], "this is Deno, whatever its versions say");
  assert.match(wideVectors().text, /Node 26/);
});
