/**
 * Lists of operations forwards with every value kept, and backwards: what a gradient of the result makes of the inputs.
 * Weights are frozen, so nothing is said of theirs. Plain loops over float32, for calibrations.
 */
import { type Activation, type Operation, resultOf } from "./operations.ts";

/** A matrix `[outputs, inputs]`, and what is added to the product, `[outputs]`. */
export interface Matrix {
  readonly inputs: number;
  readonly numbers: Float32Array;
  readonly bias?: Float32Array;
}

/** An operation with its numbers in hand. */
export type Step = Operation<Float32Array, readonly Matrix[]>;

/** Values by name, `[count, width]` each. */
export type Tape = Map<string, Float32Array>;

/**
 * Runs a list over `count` rows of its inputs and keeps every value.
 * @throws RangeError for experts: which one a token goes to has no gradient.
 */
export function runForward(
  steps: readonly Step[],
  inputs: Readonly<Record<string, Float32Array>>,
  count: number,
  epsilon: number,
): Tape {
  const tape: Tape = new Map(Object.entries(inputs));
  for (const step of steps) tape.set(step.to, forward(step, tape, count, epsilon));
  return tape;
}

/** The result of a list that {@link runForward} has run. */
export function resultIn(steps: readonly Step[], tape: Tape): Float32Array {
  return tape.get(resultOf(steps))!;
}

/**
 * Gradients of the values of a list, its inputs among them, from that of its result, `[count, width]`. What has no
 * influence on the result is absent.
 */
export function runBackward(
  steps: readonly Step[],
  tape: Tape,
  gradient: Float32Array,
  count: number,
  epsilon: number,
): Tape {
  const gradients: Tape = new Map([[resultOf(steps), gradient]]);
  const give = (name: string, more: Float32Array) => {
    const before = gradients.get(name);
    gradients.set(name, before ? before.map((x, i) => x + more[i]) : more);
  };
  for (const step of [...steps].reverse()) {
    const after = gradients.get(step.to);
    if (after) backward(step, tape, after, count, epsilon, give);
  }
  return gradients;
}

function forward(step: Step, tape: Tape, count: number, epsilon: number): Float32Array {
  const value = (name: string) => tape.get(name)!;
  switch (step.op) {
    case "norm":
      return normed(value(step.from), whole(step.gains), step.gains, count, epsilon);
    case "headNorm":
      return normed(value(step.from), step, step.gains, count, epsilon);
    case "multiply":
      return multiplied(value(step.from), step.weights, step.rows, count);
    case "gate":
      return gated(value(step.from), step.activation, count);
    case "add": {
      const other = value(step.from[1]);
      return value(step.from[0]).map((x, i) => x + other[i]);
    }
    case "scale":
      return scaled(value(step.from), step, count);
    case "cap":
      return value(step.from).map((x) => step.cap * Math.tanh(x / step.cap));
    case "choose":
    case "expand":
    case "collect":
      throw new RangeError("Cannot run experts backwards");
    case "couple":
      throw new RangeError("Cannot run convolutions backwards");
    case "unitNorm":
    case "gateBy":
      throw new RangeError("Cannot run layers of several shapes backwards");
    default:
      throw new TypeError(`Unknown operation ${step satisfies never}`);
  }
}

function backward(
  step: Step,
  tape: Tape,
  after: Float32Array,
  count: number,
  epsilon: number,
  give: (name: string, gradient: Float32Array) => void,
): void {
  const value = (name: string) => tape.get(name)!;
  switch (step.op) {
    case "norm":
      return give(step.from, normGradient(value(step.from), after, whole(step.gains), step.gains, count, epsilon));
    case "headNorm":
      return give(step.from, normGradient(value(step.from), after, step, step.gains, count, epsilon));
    case "multiply":
      return give(step.from, multiplyGradient(after, step.weights, step.rows, count));
    case "gate":
      return give(step.from, gateGradient(value(step.from), after, step.activation, count));
    case "add":
      give(step.from[0], after);
      return give(step.from[1], after);
    case "scale":
      return give(step.from, scaled(after, step, count));
    case "cap":
      return give(step.from, after.map((g, i) => g * (1 - Math.tanh(value(step.from)[i] / step.cap) ** 2)));
    case "choose":
    case "expand":
    case "collect":
      throw new RangeError("Cannot run experts backwards");
    case "couple":
      throw new RangeError("Cannot run convolutions backwards");
    case "unitNorm":
    case "gateBy":
      throw new RangeError("Cannot run layers of several shapes backwards");
    default:
      throw new TypeError(`Unknown operation ${step satisfies never}`);
  }
}

/** Runs of columns that are normed by themselves. */
interface Runs {
  readonly first: number;
  readonly heads: number;
  readonly width: number;
}

function whole({ length }: Float32Array): Runs {
  return { first: 0, heads: 1, width: length };
}

/** Where every run of every row begins. */
function* runsOf(length: number, { first, heads, width }: Runs, count: number): Generator<number> {
  const columns = length / count;
  for (let row = 0; row < count; row++) {
    for (let head = 0; head < heads; head++) yield row * columns + first + head * width;
  }
}

/** 1 / √(mean of squares + ε) of the run at `at`. */
function inverseSize(x: Float32Array, at: number, width: number, epsilon: number): number {
  let squares = 0;
  for (let i = 0; i < width; i++) squares += x[at + i] ** 2;
  return 1 / Math.sqrt(squares / width + epsilon);
}

function normed(x: Float32Array, runs: Runs, gains: Float32Array, count: number, epsilon: number): Float32Array {
  const out = x.slice(), { width } = runs;
  for (const at of runsOf(x.length, runs, count)) {
    const inverse = inverseSize(x, at, width, epsilon);
    for (let i = 0; i < width; i++) out[at + i] = x[at + i] * inverse * gains[i];
  }
  return out;
}

/** With s = 1/√(mean x² + ε): dx = s·γ·g − x · s³ · mean(γ·g·x). */
function normGradient(
  x: Float32Array,
  after: Float32Array,
  runs: Runs,
  gains: Float32Array,
  count: number,
  epsilon: number,
): Float32Array {
  const out = after.slice(), { width } = runs;
  for (const at of runsOf(x.length, runs, count)) {
    const inverse = inverseSize(x, at, width, epsilon);
    let along = 0;
    for (let i = 0; i < width; i++) along += gains[i] * after[at + i] * x[at + i];
    const back = along / width * inverse ** 3;
    for (let i = 0; i < width; i++) out[at + i] = inverse * gains[i] * after[at + i] - back * x[at + i];
  }
  return out;
}

function scaled(
  x: Float32Array,
  { factor, first, width }: { readonly factor: number; readonly first: number; readonly width: number },
  count: number,
): Float32Array {
  const columns = x.length / count;
  return x.map((value, i) => i % columns >= first && i % columns < first + width ? value * factor : value);
}

/** The matrices stand one below the other: `[count, rows]`. */
function multiplied(x: Float32Array, weights: readonly Matrix[], rows: number, count: number): Float32Array {
  const out = new Float32Array(count * rows);
  let first = 0;
  for (const { inputs, numbers, bias } of weights) {
    const outputs = numbers.length / inputs;
    for (let row = 0; row < outputs; row++) {
      const added = bias ? bias[row] : 0;
      for (let token = 0; token < count; token++) {
        out[token * rows + first + row] = added + dot(numbers, row * inputs, x, token * inputs, inputs);
      }
    }
    first += outputs;
  }
  return out;
}

/** Four sums at a time, so that additions don't wait for each other. */
function dot(a: Float32Array, atA: number, b: Float32Array, atB: number, length: number): number {
  let [s0, s1, s2, s3] = [0, 0, 0, 0], i = 0;
  for (; i + 4 <= length; i += 4) {
    s0 += a[atA + i] * b[atB + i];
    s1 += a[atA + i + 1] * b[atB + i + 1];
    s2 += a[atA + i + 2] * b[atB + i + 2];
    s3 += a[atA + i + 3] * b[atB + i + 3];
  }
  for (; i < length; i++) s0 += a[atA + i] * b[atB + i];
  return s0 + s1 + s2 + s3;
}

/** dx = g · W, four rows of W at a time. */
function multiplyGradient(after: Float32Array, weights: readonly Matrix[], rows: number, count: number): Float32Array {
  const { inputs } = weights[0], out = new Float32Array(count * inputs);
  let first = 0;
  for (const { numbers } of weights) {
    const outputs = numbers.length / inputs;
    for (let row = 0; row < outputs; row += 4) {
      for (let token = 0; token < count; token++) {
        addRows(
          out,
          token * inputs,
          numbers,
          row,
          Math.min(4, outputs - row),
          inputs,
          after,
          token * rows + first + row,
        );
      }
    }
    first += outputs;
  }
  return out;
}

/** Adds `many` (at most 4) rows of a matrix, weighed by as many factors from `at` on. */
function addRows(
  out: Float32Array,
  to: number,
  matrix: Float32Array,
  row: number,
  many: number,
  inputs: number,
  factors: Float32Array,
  at: number,
): void {
  const [a, b, c, d] = [0, 1, 2, 3].map((i) => i < many ? (row + i) * inputs : row * inputs);
  const [fa, fb, fc, fd] = [0, 1, 2, 3].map((i) => i < many ? factors[at + i] : 0);
  for (let i = 0; i < inputs; i++) {
    out[to + i] += fa * matrix[a + i] + fb * matrix[b + i] + fc * matrix[c + i] + fd * matrix[d + i];
  }
}

/** An activation and its slope. */
const ACTIVATIONS: Readonly<Record<Exclude<Activation, "limited">, (x: number) => readonly [number, number]>> = {
  silu: (x) => {
    const sigmoid = 1 / (1 + Math.exp(-x));
    return [x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))];
  },
  gelu: (x) => {
    const root = Math.sqrt(2 / Math.PI), tanh = Math.tanh(root * (x + 0.044715 * x ** 3));
    const slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh ** 2) * root * (1 + 3 * 0.044715 * x ** 2);
    return [0.5 * x * (1 + tanh), slope];
  },
};

/** Only experts are gated so, and those don't run backwards. */
function slopeOf(activation: Activation): (x: number) => readonly [number, number] {
  if (activation === "limited") throw new RangeError("Cannot run a limited gate backwards");
  return ACTIVATIONS[activation];
}

function gated(both: Float32Array, activation: Activation, count: number): Float32Array {
  const half = both.length / count / 2, apply = slopeOf(activation);
  return Float32Array.from({ length: count * half }, (_, i) => {
    const at = Math.floor(i / half) * 2 * half + i % half;
    return apply(both[at])[0] * both[at + half];
  });
}

function gateGradient(both: Float32Array, after: Float32Array, activation: Activation, count: number): Float32Array {
  const half = both.length / count / 2, apply = slopeOf(activation), out = new Float32Array(both.length);
  after.forEach((gradient, i) => {
    const at = Math.floor(i / half) * 2 * half + i % half, [value, slope] = apply(both[at]);
    out[at] = gradient * slope * both[at + half];
    out[at + half] = gradient * value;
  });
  return out;
}
