/** Lists of operations (`core/dense/operations.ts`) as a device takes them: sums fused, and when a value is done with. */
import { type Operation, readsOf, resultOf, type UnitNorm, widthsOf } from "../../core/dense/operations.ts";
import type { GpuBuffer } from "../device.ts";
import type { MatrixPart } from "./weights.ts";

/**
 * Gains as a buffer, weights as parts that lie one beside the other in the result. Of experts (`expand`, `collect`) there
 * is an entry for each matrix that an expert has, not for each expert: all experts' rows lie one below the other. A norm
 * without gains has gains of 1.
 */
export type DeviceOperation = Exclude<Operation<GpuBuffer, readonly MatrixPart[]>, UnitNorm>;
export type DeviceExpand = Extract<DeviceOperation, { op: "expand" }>;
export type DeviceCollect = Extract<DeviceOperation, { op: "collect" }>;

/** An operation, and what ends with it. */
export interface ListStep {
  readonly operation: DeviceOperation;
  /** A value that is added to a product as it is made. */
  readonly addend?: string;
  /** The value it gives: of a product with an addend the sum. */
  readonly to: string;
  /** Values that nobody reads afterwards, but for the list's inputs. */
  readonly done: readonly string[];
}

export interface DeviceList {
  readonly steps: readonly ListStep[];
  readonly widths: ReadonlyMap<string, number>;
  readonly result: string;
  /** The largest width: what a chunk of rows is bounded by. */
  readonly widest: number;
}

/** Makes a list ready to run over inputs of these widths. */
export function listOf(
  operations: readonly DeviceOperation[],
  inputs: Readonly<Record<string, number>>,
): DeviceList {
  const widths = widthsOf(operations, inputs), fused = fuseSums(operations, inputs), result = resultOf(operations);
  const last = new Map(fused.flatMap((step, index) => inputsOf(step).map((name) => [name, index] as const)));
  const given = new Set([...Object.keys(inputs), result]);
  const steps = fused.map((step, index): ListStep => ({
    ...step,
    done: [...last].filter(([name, at]) => at === index && !given.has(name)).map(([name]) => name),
  }));
  return { steps, widths, result, widest: Math.max(...widths.values()) };
}

type Fused = Omit<ListStep, "done">;

function inputsOf({ operation, addend }: Fused): readonly string[] {
  return addend === undefined ? readsOf(operation) : [...readsOf(operation), addend];
}

/** A product that is wanted for one sum alone, whose other part is there before, is added to it as it is made. */
function fuseSums(operations: readonly DeviceOperation[], inputs: Readonly<Record<string, number>>): Fused[] {
  const readers = (name: string) => operations.filter((each) => readsOf(each).includes(name));
  const known = new Set(Object.keys(inputs)), sums = new Set<DeviceOperation>(), steps: Fused[] = [];
  for (const operation of operations) {
    if (sums.has(operation)) continue;
    const [reader, ...others] = readers(operation.to);
    const addend = operation.op === "multiply" && others.length === 0 && reader?.op === "add"
      ? reader.from.find((name) => name !== operation.to && known.has(name))
      : undefined;
    if (addend === undefined) steps.push({ operation, to: operation.to });
    else {
      steps.push({ operation, addend, to: reader.to });
      sums.add(reader);
    }
    known.add(steps[steps.length - 1].to);
  }
  return steps;
}
