/** The row of transformers.js in `deno task bench gpu`: when there is one, and what is said where there is none. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Figure } from "../../bench/gpu/measure.ts";
import { readPlacement, requireWebGpu } from "../../bench/gpu/placement.ts";
import { type Library, loadLibrary, transformers } from "../../bench/gpu/transformers.ts";

const SAID = "2026-01-01 [V:onnxruntime:, session_state.cc:1 VerifyEachNodeIsAssignedToAnEp] ";
const ON_DEVICE = [
  `${SAID}Node placements`,
  `${SAID} Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2`,
  `${SAID}  Shape (/a)`,
  `${SAID}  Unsqueeze (/MatMul/b)`,
  `${SAID} Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 3`,
  `${SAID}  MatMulNBits (/q)`,
  `${SAID}  GroupQueryAttention (/attention)`,
  `${SAID}  Add (/c)`,
  "2026-01-01 [V:onnxruntime:, session_state.cc:1 CreateGraphInfo] MatMul (/elsewhere)",
];

Deno.test("bench: what onnxruntime logs says which provider runs what", () => {
  const placement = readPlacement(ON_DEVICE);
  assert.deepEqual([...placement], [
    ["CPUExecutionProvider", { nodes: 2, products: [] }],
    ["WebGpuExecutionProvider", { nodes: 3, products: ["MatMulNBits (/q)", "GroupQueryAttention (/attention)"] }],
  ]);
  assert.equal(requireWebGpu(placement), "3 of 5 nodes on WebGPU, among them all products");
  const all = [`${SAID} All nodes placed on [WebGpuExecutionProvider]. Number of nodes: 7`];
  assert.equal(requireWebGpu(readPlacement(all)), "7 of 7 nodes on WebGPU, among them all products");
});

Deno.test("bench: no placement is called WebGPU's that isn't", () => {
  const cpu = (name: string) => [...ON_DEVICE.slice(0, 4), `${SAID}  ${name} (/x)`, ...ON_DEVICE.slice(4)];
  for (const name of ["MatMulInteger", "Gemm", "MultiHeadAttention", "DynamicQuantizeMatMul", "QMoE"]) {
    assert.throws(
      () => requireWebGpu(readPlacement(cpu(name))),
      { message: `${name} (/x) runs on CPUExecutionProvider, not on WebGPU` },
    );
  }
  const other = [`${SAID} All nodes placed on [CPUExecutionProvider]. Number of nodes: 7`];
  assert.throws(() => requireWebGpu(readPlacement(other)), /^Error: no node of it runs on WebGPU \(CPUEx/);
  assert.throws(() => requireWebGpu(readPlacement([])), /no node of it runs on WebGPU \(none is told\)/);
});

interface StandIn {
  readonly log?: readonly string[];
  readonly dtype?: string;
  readonly device?: string;
  /** Stages of a pass over the model. */
  readonly stages?: number;
  /** Texts of more tokens fail. */
  readonly longest?: number;
}

/** Stands in for the package: what was opened, read (tokens, tokens of the answer) and closed. */
function standIn({ log = ON_DEVICE, dtype = "q4", device = "A card", stages = 9, longest = 1e9 }: StandIn) {
  const calls: unknown[] = [];
  class Tensor {
    readonly ids: BigInt64Array;
    constructor(_type: string, ids: BigInt64Array) {
      this.ids = ids;
    }
  }
  const model = {
    sessions: { model: { config: { dtype } } },
    config: { vocab_size: 50 },
    // deno-lint-ignore no-explicit-any
    generate({ inputs: { ids }, max_new_tokens, min_new_tokens, do_sample, streamer }: any) {
      assert.ok(ids.every((id: bigint) => id >= 0n && id < 50n));
      assert.deepEqual([min_new_tokens, do_sample], [max_new_tokens, false]);
      calls.push(["read", ids.length, max_new_tokens]);
      if (ids.length > longest) return Promise.reject(new Error("no memory\nmore of it", { cause: "17" }));
      streamer.put();
      for (let i = 0; i < max_new_tokens; i++) {
        for (let j = 0; j < stages; j++) GPUComputePassEncoder.prototype.dispatchWorkgroups(1);
        streamer.put();
      }
      streamer.end();
      return Promise.resolve();
    },
    dispose: () => Promise.resolve(void calls.push("closed")),
  };
  const library = {
    env: {
      version: "0.0.1",
      backends: { onnx: { wasm: {}, webgpu: { device: { adapterInfo: { description: device } } } } },
    },
    AutoModelForCausalLM: {
      // deno-lint-ignore no-explicit-any
      from_pretrained(id: string, { device, dtype, session_options }: any) {
        calls.push(["open", id, device, dtype]);
        if (session_options.logSeverityLevel === 0) { for (const line of log) console.error(line); }
        return Promise.resolve(model);
      },
    },
    Tensor,
  } as unknown as Library;
  return { library, calls };
}

/** The figures and the lines that the bench prints, and what was asked of the package. */
async function ran(options: StandIn & { readonly model?: string; readonly emulated?: boolean } = {}) {
  const { library, calls } = standIn(options), figures: Figure[] = [], lines: string[] = [];
  const passes = GPUComputePassEncoder.prototype, { dispatchWorkgroups } = passes;
  const stub = passes.dispatchWorkgroups = () => {};
  try {
    const { model = "owner/name", emulated = false } = options;
    const plan = { model, dtype: "q4", tokens: [100, 300], device: "A card", emulated };
    await transformers(
      plan,
      (figure) => figures.push(figure),
      () => Promise.resolve(library),
      (line) => lines.push(line),
    );
    assert.equal(passes.dispatchWorkgroups, stub, "stages are counted no longer");
  } finally {
    passes.dispatchWorkgroups = dispatchWorkgroups;
  }
  return { figures, lines, calls, library };
}

const REFUSED: readonly [StandIn & { readonly model?: string }, string][] = [
  [{ log: [] }, "no node of it runs on WebGPU (none is told)"],
  [{ dtype: "fp32" }, "it doesn't know the type q4, and took fp32"],
  [{ device: "Another" }, "it runs on Another, the bench on A card"],
  [{ stages: 0 }, "no stage of a token ran on the bench's device"],
  [{ model: "nowhere" }, "nowhere is no folder with a config.json, and no id of the hub (OWNER/NAME)"],
];
for (const [options, reason] of REFUSED) {
  Deno.test(`bench: transformers.js gives no row: ${reason}`, async () => {
    const { figures, lines, calls } = await ran(options);
    assert.deepEqual([figures, lines], [[], [`transformers.js gives no row: ${reason}`]]);
    const opened = calls.filter((call) => Array.isArray(call) && call[0] === "open").length;
    assert.equal(calls.filter((call) => call === "closed").length, opened, "what was opened is closed");
  });
}

Deno.test("bench: transformers.js reads and answers, warmed up, and says where", async () => {
  const { figures, lines, calls, library } = await ran();
  assert.deepEqual(lines, [
    "transformers.js 0.0.1, owner/name, q4: 3 of 5 nodes on WebGPU, among them all products, 9 stages a token",
  ]);
  assert.deepEqual(figures.map(({ what, unit }) => [what, unit]), [
    ["transformers.js q4, WebGPU: read 100 tokens, 100% kept", "tokens/s"],
    ["transformers.js q4, WebGPU: answer 100 tokens, 100% kept", "tokens/s"],
    ["transformers.js q4, WebGPU: read 300 tokens, 100% kept", "tokens/s"],
    ["transformers.js q4, WebGPU: answer 300 tokens, 100% kept", "tokens/s"],
  ]);
  const open = ["open", "owner/name", "webgpu", "q4"];
  const reads = [[8, 2], [100, 16], [100, 128], [300, 16], [300, 128]].map((each) => ["read", ...each]);
  assert.deepEqual(calls, [open, "closed", open, ...reads, "closed"]);
  assert.deepEqual([library.env.allowLocalModels, library.env.allowRemoteModels], [false, true]);
});

Deno.test("bench: transformers.js runs once and small on an emulated device", async () => {
  const { figures, calls } = await ran({ emulated: true });
  assert.deepEqual(calls.filter((call) => Array.isArray(call) && call[0] === "read"), [["read", 8, 2], [
    "read",
    64,
    2,
  ]]);
  assert.equal(figures.length, 2);
});

Deno.test("bench: a length that transformers.js can't read is said, and the others are measured", async () => {
  const { figures, lines } = await ran({ longest: 200 });
  assert.equal(figures.length, 2);
  assert.equal(lines[1], "transformers.js gives no row at 300 tokens: no memory (17)");
});

Deno.test("bench: a folder is read from, and nothing is fetched for it", async () => {
  const folder = await mkdtemp(join(tmpdir(), "a model "));
  try {
    await writeFile(join(folder, "config.json"), "{}");
    const { calls, library } = await ran({ model: folder });
    assert.match((calls[0] as string[])[1], /^file:\/\/\/.*a%20model%20/);
    assert.deepEqual([library.env.allowLocalModels, library.env.allowRemoteModels], [true, false]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("bench: without the package it is said how to get it", async () => {
  const lines: string[] = [];
  const plan = { model: "owner/name", dtype: "q4", tokens: [1], device: "A card", emulated: true };
  await transformers(plan, () => assert.fail(), () => loadLibrary("/nowhere"), (line) => lines.push(line));
  const how = "npm install --ignore-scripts --prefix bench/peers";
  assert.deepEqual(lines, [`transformers.js gives no row: it is not in bench/peers: ${how}`]);
});
