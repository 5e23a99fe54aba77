/**
 * One thread's part of the dense layers: some rows of every matrix. Inputs and outputs of each step are in the workspace
 * that all threads see; between two phases of a step they wait for each other. One thread alone never waits: for steps
 * that are too small to be shared out ({@link worthSharing}) the first thread holds all rows.
 */
import { multiplyAddsOf, type Operation } from "../../core/dense/operations.ts";
import { Buffers, type Kernels } from "../module.ts";
import type { Workspace } from "../threads/barrier.ts";
import { WORK_PER_WAIT } from "../threads/cost.ts";
import { Execution, type HeldMatrices, heldMatrices, type HeldOperation } from "./execution.ts";
import type { Stored } from "./products.ts";
import { type Schedule, scheduleOf } from "./schedule.ts";

/** Some rows of a matrix. Weights by id, so that a plan can be sent to another thread. */
export interface MatrixPlan {
  /** Number of its tensor type. */
  readonly kernel: number;
  /** Rows of this thread, possibly none. */
  readonly outputs: number;
  readonly inputs: number;
  readonly weights: number;
  readonly bias?: number;
  /** Where the first of them stands in the whole result. */
  readonly column: number;
}

/** An operation with ids: gains, and matrices side by side. */
export type PlanOperation = Operation<number, readonly MatrixPlan[]>;

/** Widths of values that lists begin with. */
export type Inputs = Readonly<Record<string, number>>;

export interface DensePlan {
  /** Widths of what the head begins with, and, in `layers`, what each layer's lists do. */
  readonly inputs: Inputs;
  readonly normEpsilon: number;
  /** Float32 arithmetic instead of int16 inputs. */
  readonly exact: boolean;
  /** Whether one thread has all columns of everything. */
  readonly alone: boolean;
  /** Whether this thread puts results in the workspace that all threads have. */
  readonly first: boolean;
  readonly layers: readonly {
    readonly inputs: Inputs;
    readonly project: readonly PlanOperation[];
    readonly finish: readonly PlanOperation[];
  }[];
  readonly head: readonly PlanOperation[];
}

/** The steps, which are the lists of a decoder. */
export const STEP = { qkv: 0, finish: 1, logits: 2 } as const;
export type Step = typeof STEP[keyof typeof STEP];

/** What a list costs several threads. */
export interface Work {
  /** For one token. */
  readonly multiplyAdds: number;
  /** Times that threads wait for one another: at the start and after each phase; the workspace costs as much as one. */
  readonly waits: number;
}

export function workOf(
  operations: readonly Operation<unknown, unknown>[],
  inputs: Readonly<Record<string, number>>,
): Work {
  const { phases } = scheduleOf(operations, inputs, false);
  return { multiplyAdds: multiplyAddsOf(operations, inputs), waits: phases.length + 1 };
}

/** Whether a list over `count` tokens has `workPerWait` multiply-adds for every wait, or is better left to one thread. */
export function worthSharing({ multiplyAdds, waits }: Work, count: number, workPerWait = WORK_PER_WAIT): boolean {
  return count * multiplyAdds >= workPerWait * waits;
}

/** Rows of a matrix are shared out in runs of this many, which the kernels take together. */
const RUN = 16;

/** Rows `[from, to)` of `outputs` that belong to a thread. */
export function shareRows(outputs: number, threads: number, rank: number): { from: number; to: number } {
  const runs = Math.ceil(outputs / RUN);
  const start = (r: number) => Math.min(outputs, Math.ceil(r * runs / threads) * RUN);
  return { from: start(rank), to: start(rank + 1) };
}

/** A list with this thread's part of its weights. */
type Held = Schedule<HeldOperation>;

export class DensePart {
  readonly #kernels: Kernels;
  readonly #workspace: Workspace;
  readonly #plan: DensePlan;
  readonly #layers: readonly { readonly project: Held; readonly finish: Held }[];
  readonly #head: Held;

  /** `stored`: the weights by id. */
  constructor(kernels: Kernels, workspace: Workspace, plan: DensePlan, stored: ReadonlyMap<number, Stored>) {
    const held = (operations: readonly PlanOperation[], inputs: Inputs): Held =>
      scheduleOf(operations.map((operation) => holding(operation, stored)), inputs, plan.alone);
    this.#kernels = kernels;
    this.#workspace = workspace;
    this.#plan = plan;
    this.#layers = plan.layers.map(({ inputs, project, finish }) => {
      return { project: held(project, inputs), finish: held(finish, inputs) };
    });
    this.#head = held(plan.head, plan.inputs);
  }

  /** Where a step has its inputs and its result in the workspace, in floats a token. */
  schedule(step: Step, layer: number): Held {
    switch (step) {
      case STEP.qkv:
        return this.#layers[layer].project;
      case STEP.finish:
        return this.#layers[layer].finish;
      case STEP.logits:
        return this.#head;
      default:
        return step satisfies never;
    }
  }

  /** Carries out a step over `count` rows in the workspace; `meet` waits for the other threads, failed or not. */
  run(step: Step, layer: number, count: number, meet: () => void): void {
    const running = this.start(step, layer, count);
    while (!running.next()) meet();
  }

  /** The same, phase by phase: after each `next()` that is not the last one the threads must meet. */
  start(step: Step, layer: number, count: number): Running {
    const schedule = this.schedule(step, layer), buffers = new Buffers(this.#kernels);
    const execution = new Execution(this.#kernels, buffers, this.#workspace, this.#plan, schedule, count);
    return new Running(buffers, schedule.phases.map((phase) => () => execution.phase(phase)));
  }
}

function holding(operation: PlanOperation, stored: ReadonlyMap<number, Stored>): HeldOperation {
  switch (operation.op) {
    case "norm":
    case "headNorm":
      return { ...operation, gains: stored.get(operation.gains)! };
    case "multiply":
      return { ...operation, weights: held(operation.weights, stored) };
    case "expand":
    case "collect":
      return { ...operation, weights: operation.weights.map((expert) => held(expert, stored)) };
    default:
      return operation;
  }
}

function held(plans: readonly MatrixPlan[], stored: ReadonlyMap<number, Stored>): HeldMatrices {
  return heldMatrices(plans.map((part) => {
    const bias = part.bias === undefined ? undefined : stored.get(part.bias)!;
    const weights = stored.get(part.weights)!;
    weights.weave(part.kernel, part.inputs);
    return { ...part, weights, bias };
  }));
}

/** A step under way. */
export class Running {
  readonly #buffers: Buffers;
  readonly #phases: readonly (() => void)[];
  #done = 0;
  #failed?: { readonly error: unknown };

  /** `buffers` are given back at the end. */
  constructor(buffers: Buffers, phases: readonly (() => void)[]) {
    this.#buffers = buffers;
    this.#phases = phases;
  }

  /**
   * Does the next phase; true after the last one. A failure is thrown there and no earlier, so that nobody waits in vain
   * for this thread.
   */
  next(): boolean {
    if (!this.#failed) {
      try {
        this.#phases[this.#done]();
      } catch (error) {
        this.#failed = { error };
      }
    }
    if (++this.#done < this.#phases.length) return false;
    this.stop();
    if (this.#failed) throw this.#failed.error;
    return true;
  }

  /** Gives the buffers back. */
  stop(): void {
    this.#buffers.free();
  }
}
