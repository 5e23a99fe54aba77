/** Products of the matrices that a model of a billion weights has, against the ceilings. */
import type { GpuBuffer, GpuDevice } from "../../gpu/device.ts";
import { listOf } from "../../gpu/dense/lists.ts";
import { DenseStages, type StagesOptions } from "../../gpu/dense/stages.ts";
import { DeviceWeights, type MatrixPart } from "../../gpu/dense/weights.ts";
import { rowBytesOf, type TensorType, typeNamed } from "../../model/file/tensor_types.ts";
import { type Ceilings, noise, type Report, seconds, weightLike } from "./measure.ts";

export interface Shape {
  readonly inputs: number;
  readonly outputs: number;
}

/** Of Llama 3.2 1B: gate and up together; down; the queries. */
export const SHAPES: readonly Shape[] = [
  { inputs: 2048, outputs: 16384 },
  { inputs: 8192, outputs: 2048 },
  { inputs: 2048, outputs: 2048 },
];
/** For an emulated device. */
export const SMALL: readonly Shape[] = [{ inputs: 256, outputs: 256 }];
/** Bytes of weights that no cache holds; copies of a matrix are gone through. */
const UNCACHED = 400e6;

/** The forms to compare, by the name to print them under. */
export interface ProductForm {
  readonly name: string;
  readonly options: Partial<StagesOptions>;
}

export interface ProductPlan {
  readonly types: readonly string[];
  readonly oneRow: readonly ProductForm[];
  readonly manyRows: readonly ProductForm[];
  /** Rows of inputs for `manyRows`. */
  readonly rows: readonly number[];
}

/** As they are made by default. */
export const PLAN: ProductPlan = {
  types: ["Q4_K", "Q6_K", "Q8_0", "Q4_0"],
  oneRow: [{ name: "", options: {} }],
  manyRows: [{ name: ", 32 bits", options: {} }, { name: ", 16 bits", options: { f16: true } }],
  rows: [256, 1024],
};

/** Every form of the plan, as it suits the device. */
export const COMPARISON: ProductPlan = {
  types: ["Q4_K", "Q6_K", "Q8_0"],
  oneRow: [{ name: ", unit by unit", options: { wide: false } }, { name: ", four units", options: { wide: true } }],
  manyRows: [
    { name: ", tiles of 64", options: { tile: 4 } },
    { name: ", tiles of 64 in 16 bits", options: { tile: 4, f16: true } },
    { name: ", tiles of 128", options: { tile: 8 } },
  ],
  rows: [256, 1024],
};

/** Bytes of weights a second for one row, operations for many. */
export async function products(gpu: GpuDevice, ceilings: Ceilings, plan: ProductPlan, report: Report): Promise<void> {
  for (const name of plan.types) {
    const type = typeNamed(name);
    for (const shape of gpu.info.emulated ? SMALL : SHAPES) {
      using weights = new DeviceWeights(gpu);
      const parts = fill(weights, type, shape, gpu.info.emulated ? 1 : UNCACHED);
      await gpu.settled();
      await oneRow(gpu, parts, [type, shape], ceilings, plan.oneRow, report);
      if (name === plan.types[0] || shape.outputs > 10000) {
        for (const rows of gpu.info.emulated ? [18] : plan.rows) {
          await manyRows(gpu, parts, [type, shape, rows], ceilings, plan.manyRows, report);
        }
      }
    }
  }
}

/** As many matrices as no cache holds together. */
function fill(weights: DeviceWeights, type: TensorType, { inputs, outputs }: Shape, uncached: number): MatrixPart[] {
  const rowBytes = rowBytesOf(type, inputs), bytes = outputs * rowBytes, numbers = weightLike(bytes);
  return Array.from({ length: Math.max(1, Math.ceil(uncached / bytes)) }, () => {
    const filling = weights.fill(bytes);
    filling.add(numbers);
    return { kind: type.id, inputs, padded: inputs, outputs, column: 0, rowBytes, weights: filling.end() };
  });
}

/** Runs a product with each of the matrices in turn. */
async function time(
  gpu: GpuDevice,
  parts: readonly MatrixPart[],
  rows: number,
  options: Partial<StagesOptions>,
): Promise<number> {
  const [{ inputs, outputs }] = parts, x = gpu.own(4 * inputs * rows), y = gpu.own(4 * outputs * rows);
  gpu.write(x, 0, noise(inputs * rows));
  const stages = new DenseStages(gpu, { normEpsilon: 0, f16: false, ...options });
  const lists = parts.map((part) =>
    listOf([{ op: "multiply", weights: [part], rows: outputs, from: "x", to: "y" }], { x: inputs })
  );
  const took = await seconds(gpu, (i) => stages.run(lists[i % lists.length], { x }, rows, y));
  for (const buffer of [x, y] satisfies GpuBuffer[]) gpu.destroy(buffer);
  return took;
}

async function oneRow(
  gpu: GpuDevice,
  parts: readonly MatrixPart[],
  [type, { inputs, outputs }]: readonly [TensorType, Shape],
  { copy }: Ceilings,
  forms: readonly ProductForm[],
  report: Report,
): Promise<void> {
  for (const { name, options } of forms) {
    const took = await time(gpu, parts, 1, options);
    const what = `${type.name} ${inputs} × ${outputs}, one row${name}`;
    report({ what, value: outputs * rowBytesOf(type, inputs) / took / 1e9, unit: "GB/s", ceiling: copy });
  }
}

async function manyRows(
  gpu: GpuDevice,
  parts: readonly MatrixPart[],
  [type, { inputs, outputs }, rows]: readonly [TensorType, Shape, number],
  { multiplyAdd }: Ceilings,
  forms: readonly ProductForm[],
  report: Report,
): Promise<void> {
  for (const { name, options } of forms) {
    if (options.f16 && !gpu.info.features.f16) continue;
    const took = await time(gpu, parts.slice(0, 4), rows, options);
    const what = `${type.name} ${inputs} × ${outputs}, ${rows} rows${name}`;
    report({ what, value: 2 * inputs * outputs * rows / took / 1e9, unit: "GFLOP/s", ceiling: multiplyAdd });
  }
}
