/**
 * What a decoder does besides attention, as lists of operations. Each reads named values and gives a new one; a value has
 * a row of float32 for every token, `[count, width]`. A list begins with its inputs, and its last operation gives its
 * result. Architectures are written down as such lists, and every dense engine runs them.
 *
 * Threads are not in the lists: a product needs whole rows and gives a thread some columns of the result, so an engine
 * with several threads sees by itself where they must meet.
 */
import { exp } from "../measure/exp.ts";

/** `Gains` and `Weights` are how the reader of a list holds them: names in a file, arrays, numbers of buffers. */
export type Operation<Gains, Weights> =
  | Norm<Gains>
  | HeadNorm<Gains>
  | UnitNorm
  | Multiply<Weights>
  | Gate
  | GateBy
  | Add
  | Scale
  | Cap
  | Couple
  | Choose
  | Expand<Weights>
  | Collect<Weights>;

/** RMS norm of the row: `from / √(mean from² + ε) · gains`, gains `[width]`. */
export interface Norm<Gains> {
  readonly op: "norm";
  readonly from: string;
  readonly to: string;
  readonly gains: Gains;
}

/** The same for each of `heads` runs of `width` columns from column `first` on, gains `[width]`. The rest stays. */
export interface HeadNorm<Gains> {
  readonly op: "headNorm";
  readonly from: string;
  readonly to: string;
  readonly gains: Gains;
  readonly first: number;
  readonly heads: number;
  readonly width: number;
}

/** As {@link HeadNorm}, with gains of 1. */
export interface UnitNorm {
  readonly op: "unitNorm";
  readonly from: string;
  readonly to: string;
  readonly first: number;
  readonly heads: number;
  readonly width: number;
}

/** `from · weightsᵀ` and a bias where the weights have one; `rows`: those of the weights, the result's width. */
export interface Multiply<Weights> {
  readonly op: "multiply";
  readonly from: string;
  readonly to: string;
  readonly weights: Weights;
  readonly rows: number;
}

/**
 * `activation(a) · b` of a row that holds a and b side by side. `gelu` is the tanh form. `limited` is gpt-oss's: a of at most
 * 7, b between −7 and 7, `a · σ(1.702·a) · (b + 1)`.
 */
export interface Gate {
  readonly op: "gate";
  readonly from: string;
  readonly to: string;
  readonly activation: Activation;
}

/** `activation(from) · by`, of two values of one width. */
export interface GateBy {
  readonly op: "gateBy";
  readonly from: string;
  readonly by: string;
  readonly to: string;
  readonly activation: Activation;
}

export type Activation = "silu" | "gelu" | "limited";

/** The sum of two values of one width. */
export interface Add {
  readonly op: "add";
  readonly from: readonly [string, string];
  readonly to: string;
}

/** `factor` times `width` columns from `first` on. The rest stays. */
export interface Scale {
  readonly op: "scale";
  readonly from: string;
  readonly to: string;
  readonly factor: number;
  readonly first: number;
  readonly width: number;
}

/** `cap · tanh(from / cap)`. */
export interface Cap {
  readonly op: "cap";
  readonly from: string;
  readonly to: string;
  readonly cap: number;
}

/** `width` columns from `first` on, each times the one `width` behind it; those behind go, and end the row. */
export interface Couple {
  readonly op: "couple";
  readonly from: string;
  readonly to: string;
  readonly first: number;
  readonly width: number;
}

/**
 * The experts that each token goes to: those of its `used` largest numbers, the lower one among equals. A row of `used`
 * experts, then the softmax of their numbers.
 */
export interface Choose {
  readonly op: "choose";
  readonly from: string;
  readonly to: string;
  readonly used: number;
}

/**
 * Products of each token with the weights of its experts, which are `parts` matrices of `rows` rows each: `[parts, used,
 * rows]`.
 */
export interface Expand<Weights> {
  readonly op: "expand";
  readonly from: string;
  /** What {@link Choose} gave. */
  readonly chosen: string;
  readonly to: string;
  readonly used: number;
  readonly parts: number;
  readonly rows: number;
  /** One for each expert. */
  readonly weights: readonly Weights[];
}

/** The other way: of `[used, width]` each part with its own expert's weights, their sum weighed by the shares: `[rows]`. */
export interface Collect<Weights> {
  readonly op: "collect";
  readonly from: string;
  readonly chosen: string;
  readonly to: string;
  readonly used: number;
  readonly rows: number;
  readonly weights: readonly Weights[];
}

/** Whether a list sends tokens to experts. */
export function hasExperts(operations: readonly Operation<unknown, unknown>[]): boolean {
  return operations.some(({ op }) => op === "expand" || op === "collect");
}

/** Experts and shares of one token, from its row of numbers; the same bits in every runtime. */
export function chosenOf(numbers: ArrayLike<number>, used: number): { experts: number[]; shares: number[] } {
  const experts = Array.from(numbers, (_, i) => i).sort((a, b) => numbers[b] - numbers[a] || a - b).slice(0, used);
  const weights = experts.map((expert) => exp(numbers[expert] - numbers[experts[0]]));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return { experts, shares: weights.map((weight) => weight / total) };
}

/** Width of every value of a list, its inputs first. RangeError for a value that is read before it is there, or given twice. */
export function widthsOf(
  operations: readonly Operation<unknown, unknown>[],
  inputs: Readonly<Record<string, number>>,
): ReadonlyMap<string, number> {
  const widths = new Map(Object.entries(inputs));
  const width = (name: string) => {
    const found = widths.get(name);
    if (found === undefined) throw new RangeError(`No operation gives ${name} before it is read`);
    return found;
  };
  for (const operation of operations) {
    if (widths.has(operation.to)) throw new RangeError(`Two operations give ${operation.to}`);
    widths.set(operation.to, resultWidth(operation, width));
  }
  return widths;
}

function resultWidth(operation: Operation<unknown, unknown>, width: (name: string) => number): number {
  switch (operation.op) {
    case "multiply":
      width(operation.from);
      return operation.rows;
    case "gate":
      return width(operation.from) / 2;
    case "gateBy":
      return Math.max(width(operation.from), width(operation.by));
    case "couple":
      return width(operation.from) - operation.width;
    case "choose":
      width(operation.from);
      return 2 * operation.used;
    case "expand":
      for (const name of [operation.from, operation.chosen]) width(name);
      return operation.parts * operation.used * operation.rows;
    case "collect":
      for (const name of [operation.from, operation.chosen]) width(name);
      return operation.rows;
    case "add":
      return Math.max(...operation.from.map(width));
    case "norm":
    case "headNorm":
    case "unitNorm":
    case "scale":
    case "cap":
      return width(operation.from);
    default:
      throw new TypeError(`Unknown operation ${operation satisfies never}`);
  }
}

/** Multiply-adds of a list's products for one token: the weights they read for it. */
export function multiplyAddsOf(
  operations: readonly Operation<unknown, unknown>[],
  inputs: Readonly<Record<string, number>>,
): number {
  const widths = widthsOf(operations, inputs);
  return operations.reduce((sum, operation) => {
    if (!("rows" in operation)) return sum;
    // Of experts those that a token goes to.
    const times = operation.op === "expand" ? operation.parts * operation.used : 1;
    return sum + times * widths.get(operation.from)! * operation.rows;
  }, 0);
}

/** Names of the values that an operation reads. */
export function readsOf(operation: Operation<unknown, unknown>): readonly string[] {
  if (operation.op === "add") return operation.from;
  if (operation.op === "gateBy") return [operation.from, operation.by];
  return "chosen" in operation ? [operation.from, operation.chosen] : [operation.from];
}

/** The name of a list's result. */
export function resultOf(operations: readonly Operation<unknown, unknown>[]): string {
  return operations[operations.length - 1].to;
}
