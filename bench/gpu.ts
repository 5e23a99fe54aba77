/**
 * A WebGPU device: its ceilings, palisade's products and attention against them, and a model's reading and answering with
 * 20 % and all of the context kept; onnxruntime-web's WebGPU on the same products beside it, and transformers.js with a
 * model of its own, as ONNX files of the hub or of a folder (`npm install --ignore-scripts --prefix bench/peers` first).
 * Prints one table; on an emulated device everything runs once, small, and no time is printed.
 *
 * deno task bench gpu [--model FILE.gguf] [--tokens 1000,4000,16000] [--transformers ID_OR_FOLDER]
 *                     [--transformers-dtype q4] [--compare] [--profile] [--json FILE]
 */
import { appendFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { openGpu } from "../gpu/device.ts";
import { attention } from "./gpu/attention.ts";
import { ceilings, overheads } from "./gpu/ceilings.ts";
import type { Figure } from "./gpu/measure.ts";
import { model } from "./gpu/model.ts";
import { onnxProducts } from "./gpu/onnx.ts";
import { COMPARISON, PLAN, products, SHAPES, SMALL } from "./gpu/products.ts";
import { transformers } from "./gpu/transformers.ts";

const { values } = parseArgs({
  options: {
    model: { type: "string", multiple: true, default: [] },
    tokens: { type: "string", default: "1000,4000,16000" },
    /** A language model for transformers.js. */
    transformers: { type: "string" },
    "transformers-dtype": { type: "string", default: "q4" },
    /** Every form of the products, not only the one that is taken. */
    compare: { type: "boolean", default: false },
    profile: { type: "boolean", default: false },
    /** Takes each figure, a line of JSON, as soon as it is known. */
    json: { type: "string" },
    /** `device`, `model`: only these. */
    only: { type: "string", default: "device,model" },
  },
});

using gpu = await openGpu();
const { description, emulated, features } = gpu.info;
console.log(`${description}; 16-bit floats: ${features.f16}; subgroups: ${features.subgroups}`);

let taken = 0;
function report(figure: Figure): void {
  taken++;
  if (emulated) return;
  const { what, value, unit, ceiling } = figure;
  const share = ceiling === undefined ? "" : `${(100 * value / ceiling).toFixed(0)} %`;
  console.log(`${what.padEnd(56)} ${value.toPrecision(3).padStart(8)} ${unit.padEnd(12)} ${share}`);
  if (values.json) appendFileSync(values.json, JSON.stringify(figure) + "\n");
}

const known = await ceilings(gpu, report);
if (values.only.includes("device")) {
  await overheads(gpu, report);
  await products(gpu, known, values.compare ? COMPARISON : PLAN, report);
  await attention(gpu, known, report);
  await onnxProducts({ shapes: emulated ? SMALL : SHAPES, rows: emulated ? [18] : PLAN.rows, emulated }, known, report);
}
const tokens = values.tokens.split(",").map(Number);
for (const path of values.only.includes("model") ? values.model : []) {
  await model(path, known, { tokens, emulated, profile: values.profile }, report);
}
if (values.only.includes("model") && values.transformers !== undefined) {
  const plan = {
    model: values.transformers,
    dtype: values["transformers-dtype"],
    tokens,
    device: description,
    emulated,
  };
  await transformers(plan, report);
}
if (emulated) console.log(`${taken} figures could be taken; an emulated device's say nothing, so none is printed`);
process.exitCode = 0;
