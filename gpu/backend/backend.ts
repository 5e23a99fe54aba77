/** The WebGPU backend: the stages of this folder behind the backend interface. */
import { checkedRows } from "../../core/backend/checked_rows.ts";
import type { Backend } from "../../core/backend/interface.ts";
import { gateWidth, type LinearGate } from "../../core/measure/gate_scores.ts";
import { selectTop } from "../../core/select/select.ts";
import { floatBits, type GpuDevice } from "../device.ts";
import { createGpuTensors, type GpuTensor, type GpuTensors } from "../tensors.ts";
import { Constants } from "./constants.ts";
import { GpuRows } from "./rows.ts";
import { GATE } from "./shaders.ts";
import { MOST_GROUPS } from "./stages.ts";
import { RowMeter } from "../../core/backend/row_meter.ts";

export interface GpuBackend extends Backend<GpuTensor> {
  readonly tensors: GpuTensors;
}

export interface GpuBackendOptions {
  /** Bytes that a stage may see of one buffer; default: what the device allows. */
  readonly maxBinding?: number;
  /** Floats of attention that are at hand at once while columns are brought together; default 2^22, or `maxBinding`. */
  readonly scratch?: number;
  /** Attention by the one short stage, which emulators translate quickly; default: where the device is emulated. */
  readonly short?: boolean;
  /** What solves and multiplies for refits and gates that are fitted, on this side; default: nothing, so plain loops. */
  readonly host?: Pick<Backend, "products" | "solve" | "boundedLeastSquares">;
}

/**
 * A backend on a device, which stays the caller's to close. Its rows reject with `PalisadeError`s of `gpu/errors.ts` and,
 * for keys and values that their type can't hold, `cache-type.range`: from the next promise on.
 *
 * `select` runs on this side: the scores are here, where the policy computed them, and so no wait is added. So do refits,
 * in doubles, which a device hasn't.
 */
export function createGpuBackend(gpu: GpuDevice, options: GpuBackendOptions = {}): GpuBackend {
  const meter = new RowMeter(), tensors = createGpuTensors(gpu), constants = new Constants(gpu);
  const { maxBinding = gpu.info.maxBinding, scratch, short = gpu.info.emulated, host = {} } = options;
  const { products, solve, boundedLeastSquares } = host;
  return {
    name: "webgpu",
    detail: `WebGPU, ${gpu.info.description}${featureList(gpu)}`,
    memory: () => meter.memory(),
    refits: true,
    products,
    solve,
    boundedLeastSquares,
    tensors,
    createRows: (shape, reserve, type = "f32") =>
      checkedRows(
        shape,
        reserve,
        type,
        (checked) => {
          const options = { gpu, meter, shape: checked, type, maxBinding, constants, scratch, short };
          return new GpuRows(tensors, options, reserve);
        },
      ),
    // deno-lint-ignore require-await -- a bad input must reject, not throw
    select: async (input) => selectTop(input),
    gateScores: (gate, hidden, count) => gateScores(gpu, constants, gate, hidden, count),
    [Symbol.dispose]: () => constants[Symbol.dispose](),
  };
}

async function gateScores(
  gpu: GpuDevice,
  constants: Constants,
  gate: LinearGate,
  hidden: GpuTensor,
  count: number,
): Promise<Float32Array> {
  const heads = gate.bias.length, width = gateWidth(gate, hidden, count);
  const weights = constants.of(gate.weights), bias = constants.of(gate.bias);
  const scores = gpu.borrow(4 * count * heads), stage = gpu.stage(GATE);
  for (let first = 0; first < count; first += MOST_GROUPS) {
    gpu.run(stage, {
      params: [count, width, heads, floatBits(gate.epsilon), first],
      buffers: [hidden.buffer, weights, bias, scores],
      groups: [heads, Math.min(MOST_GROUPS, count - first)],
    });
  }
  const read = gpu.read(scores, 0, 4 * count * heads);
  gpu.giveBack(scores);
  return new Float32Array(await read);
}

function featureList({ info: { features: { f16, subgroups } } }: GpuDevice): string {
  return [f16 ? ", 16-bit floats" : "", subgroups ? ", subgroups" : ""].join("");
}
