/**
 * onnxruntime-web's WebGPU on the same products as palisade's (`products.ts`): Q4_0 as MatMulNBits, inputs and results on
 * the device. What it gives is checked against plain sums first. In Deno and in Node with the package webgpu.
 */
import { pathToFileURL } from "node:url";
import { segmentGraph } from "../../model/dense/ort/segments.ts";
import { encodeModel } from "../../model/dense/ort/onnx.ts";
import { Q4_0, unpackBlocks } from "../../model/file/block_weights.ts";
import { dequantise, rowBytesOf, typeNamed } from "../../model/file/tensor_types.ts";
import { ROOT } from "../../tools/repository.ts";
import { type Ceilings, noise, type Report, secondsOf, weightLike } from "./measure.ts";

type Ort = typeof import("onnxruntime-web/webgpu");
type Session = Awaited<ReturnType<Ort["InferenceSession"]["create"]>>;

/** By its path: in Deno and Node the package's own entry is the one without WebGPU. */
const BUNDLE = "node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs";
const TYPE = typeNamed("Q4_0");
/** Relative to the sum of the sizes of what is summed. */
const BOUND = 2 ** -16;

export interface OnnxPlan {
  readonly shapes: readonly { readonly inputs: number; readonly outputs: number }[];
  readonly rows: readonly number[];
  readonly emulated: boolean;
}

/** Bytes of weights a second for one row, operations for many; says why where it doesn't start. */
export async function onnxProducts(plan: OnnxPlan, ceilings: Ceilings, report: Report): Promise<void> {
  let ort: Ort;
  try {
    ort = await import(pathToFileURL(`${ROOT}/${BUNDLE}`).href);
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = 1;
    await product(ort, { inputs: 32, outputs: 8 });
  } catch (error) {
    console.log(`onnxruntime-web's WebGPU doesn't start here: ${String(error).split("\n")[0]}`);
    return;
  }
  for (const shape of plan.shapes) {
    const { session, weights } = await product(ort, shape);
    for (const rows of [1, ...plan.rows]) {
      const time = await timed(ort, session, weights, [rows, shape.inputs, shape.outputs], plan.emulated);
      const name = `onnxruntime-web, Q4_0 ${shape.inputs} × ${shape.outputs}`;
      const bytes = shape.outputs * rowBytesOf(TYPE, shape.inputs);
      if (rows === 1) {
        report({ what: `${name}, one row`, value: bytes / time / 1e9, unit: "GB/s", ceiling: ceilings.copy });
      } else {
        const value = 2 * shape.inputs * shape.outputs * rows / time / 1e9;
        report({ what: `${name}, ${rows} rows`, value, unit: "GFLOP/s", ceiling: ceilings.multiplyAdd });
      }
    }
    await session.release();
  }
}

/** A session of one product, and its weights as float32, `[outputs, inputs]`. */
async function product(ort: Ort, { inputs, outputs }: { inputs: number; outputs: number }) {
  const rowBytes = rowBytesOf(TYPE, inputs),
    raw = weightLike(outputs * rowBytes),
    weights = new Float32Array(outputs * inputs);
  dequantise(TYPE, raw, weights);
  const linear = { inputs, outputs, weights: unpackBlocks(Q4_0, rowBytesOf(TYPE, 32), raw) };
  const multiply = { op: "multiply", from: "x", to: "y", rows: outputs, weights: [linear] } as const;
  const { bytes, external } = encodeModel(segmentGraph("product", [multiply], { x: inputs }, 0, "web"));
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: ["webgpu"],
    externalData: [...external],
    preferredOutputLocation: "gpu-buffer",
  });
  return { session, weights };
}

async function timed(
  ort: Ort,
  session: Session,
  weights: Float32Array,
  [rows, inputs, outputs]: readonly [number, number, number],
  emulated: boolean,
): Promise<number> {
  const device = await ort.env.webgpu.device as GPUDevice, x = noise(rows * inputs);
  const buffer = device.createBuffer({ size: x.byteLength, usage: 0x80 | 0x8 | 0x4 });
  device.queue.writeBuffer(buffer, 0, x);
  const given = ort.Tensor.fromGpuBuffer(buffer as never, { dataType: "float32", dims: [rows, inputs] });
  const once = async () => (await session.run({ x: given }))[session.outputNames[0]];
  try {
    const first = await once();
    check(await first.getData(true) as Float32Array, x, weights, [rows, inputs, outputs]);
    return await secondsOf(async () => (await once()).dispose(), () => device.queue.onSubmittedWorkDone(), emulated);
  } finally {
    buffer.destroy();
  }
}

/** Some results of the first and of the last row. @throws Error when one is off. */
function check(
  got: Float32Array,
  x: Float32Array,
  weights: Float32Array,
  [rows, inputs, outputs]: readonly [number, number, number],
): void {
  for (const t of [0, rows - 1]) {
    for (let n = 0; n < outputs; n += Math.ceil(outputs / 16)) {
      let sum = 0, size = 0;
      for (let k = 0; k < inputs; k++) {
        const term = weights[n * inputs + k] * x[t * inputs + k];
        sum += term;
        size += Math.abs(term);
      }
      const off = Math.abs(got[t * outputs + n] - sum);
      if (!(off <= BOUND * size)) {
        throw new Error(`onnxruntime-web: result ${n} of row ${t} is off by ${off} of ${size}`);
      }
    }
  }
}
