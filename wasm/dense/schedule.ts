/**
 * A list of operations as threads carry it out together. A product needs whole rows and gives each thread the columns
 * whose weights it holds; what is done column by column stays in the thread. Where whole rows are wanted again, all
 * threads put their columns in the workspace and meet.
 */
import { type Operation, readsOf, resultOf, widthsOf } from "../../core/dense/operations.ts";

export interface Schedule<Step> {
  /** Between two phases the threads meet. */
  readonly phases: readonly Phase<Step>[];
  /** Where values are in the workspace, in numbers a token: the inputs, and what is put there. */
  readonly places: ReadonlyMap<string, number>;
  /** The inputs alone. */
  readonly given: readonly { readonly name: string; readonly at: number; readonly width: number }[];
  /** Numbers a token in the workspace. */
  readonly size: number;
  readonly widths: ReadonlyMap<string, number>;
  readonly result: string;
  /** The index in the list of the last operation that reads a value. */
  readonly lastRead: ReadonlyMap<string, number>;
}

export interface Phase<Step> {
  readonly steps: readonly { readonly index: number; readonly operation: Step }[];
  /** The value put in the workspace at its end. */
  readonly publishes: string;
}

/** `alone`: one thread has all columns of everything, so nobody meets. */
export function scheduleOf<Step extends Operation<unknown, unknown>>(
  operations: readonly Step[],
  inputs: Readonly<Record<string, number>>,
  alone: boolean,
): Schedule<Step> {
  const widths = widthsOf(operations, inputs), places = new Map<string, number>(), result = resultOf(operations);
  const read = new Set(operations.flatMap(readsOf));
  let size = 0;
  const place = (name: string) => {
    places.set(name, size);
    size += widths.get(name)!;
  };
  Object.keys(inputs).filter((name) => read.has(name)).forEach(place);
  const given = Array.from(places, ([name, at]) => ({ name, at, width: widths.get(name)! }));
  const phases: Phase<Step>[] = [], whole = new Set(Object.keys(inputs));
  let steps: Phase<Step>["steps"][number][] = [];
  const publish = (name: string) => {
    place(name);
    phases.push({ steps, publishes: name });
    whole.add(name);
    steps = [];
  };
  operations.forEach((operation, index) => {
    if (needsRows(operation) && !whole.has(operation.from)) publish(operation.from);
    if (alone || (!hasRows(operation) && readsOf(operation).every((name) => whole.has(name)))) {
      whole.add(operation.to);
    }
    steps.push({ index, operation });
  });
  publish(result);
  return { phases, places, given, size, widths, result, lastRead: lastReadsOf(operations) };
}

/** Whether each thread makes the columns whose weights it holds. */
function hasRows({ op }: Operation<unknown, unknown>): boolean {
  return op === "multiply" || op === "expand" || op === "collect";
}

function needsRows(
  operation: Operation<unknown, unknown>,
): operation is Exclude<Operation<unknown, unknown>, { op: "add" }> {
  return ["norm", "headNorm", "unitNorm", "multiply", "choose", "expand", "collect", "couple"].includes(operation.op);
}

function lastReadsOf(operations: readonly Operation<unknown, unknown>[]): ReadonlyMap<string, number> {
  return new Map(operations.flatMap((operation, index) => readsOf(operation).map((name) => [name, index] as const)));
}
