/**
 * Renders one chat template; runs in a worker, because a template comes with the model file and may be hostile.
 *
 * The worker can be ended from outside, but before that a template could take all memory (Bun and browsers have no heap
 * limit for workers). So the interpreter counts its *work*: the size of every value it makes.
 */
import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";

export interface RenderRequest {
  readonly template: string;
  readonly inputs: readonly RenderInput[];
  /** Milliseconds for parsing and interpreting, for each input. */
  readonly timeoutMs: number;
}

export interface RenderInput {
  /** Variables of the template. */
  readonly variables: Readonly<Record<string, unknown>>;
  /** Most characters of the result. */
  readonly maxLength: number;
}

export type RenderReply =
  | { readonly text: string }
  | { readonly refused: "timeout" | "size" | "failed"; readonly message: string };

/** Characters in all values made. A long chat template makes some 100,000; this many stay below a gigabyte. */
const MAX_WORK = 64 * 1024 * 1024;
/** What a list entry counts: an object of some 50 bytes. */
const ENTRY_WORK = 4;
const MAX_RANGE = 100_000;

/** Renders each input; what a template does wrong comes back as `refused`. */
export default function renderTemplate({ template, inputs, timeoutMs }: RenderRequest): RenderReply[] {
  return inputs.map((input) => renderOne(template, input, timeoutMs));
}

function renderOne(template: string, { variables, maxLength }: RenderInput, timeoutMs: number): RenderReply {
  try {
    const interpreter = new LimitedInterpreter(environment(variables), timeoutMs);
    const program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
    const text = String(interpreter.run(program).value);
    if (text.length > maxLength) {
      throw new Refusal("size", `it made ${text.length} characters, more than ${maxLength}`);
    }
    return { text };
  } catch (error) {
    if (error instanceof Refusal) return { refused: error.reason, message: error.message };
    return { refused: "failed", message: error instanceof Error ? error.message : String(error) };
  }
}

class Refusal extends Error {
  readonly reason: "timeout" | "size";
  constructor(reason: "timeout" | "size", message: string) {
    super(message);
    this.reason = reason;
  }
}

type Statement = Parameters<Interpreter["evaluate"]>[0];
type Value = ReturnType<Interpreter["evaluate"]>;

class LimitedInterpreter extends Interpreter {
  readonly #timeoutMs: number;
  readonly #deadline: number;
  #work = 0;
  #steps = 0;

  constructor(environment: Environment, timeoutMs: number) {
    super(environment);
    this.#timeoutMs = timeoutMs;
    this.#deadline = performance.now() + timeoutMs;
  }

  override evaluate(statement: Statement, environment: Environment): Value {
    // The clock is read every 256 steps; reading it is slower than a step.
    if ((++this.#steps & 0xff) === 0 && performance.now() > this.#deadline) {
      throw new Refusal("timeout", `it took longer than ${this.#timeoutMs} ms`);
    }
    const value = super.evaluate(statement, environment);
    this.#work += workOf(value.value);
    if (this.#work > MAX_WORK) throw new Refusal("size", "it made more intermediate text and lists than a chat needs");
    return value;
  }
}

function workOf(value: unknown): number {
  if (typeof value === "string") return value.length;
  if (Array.isArray(value)) return ENTRY_WORK * value.length;
  return value instanceof Map ? ENTRY_WORK * value.size : 0;
}

/**
 * The globals of `@huggingface/jinja`, less `strftime_now`: templates that know the day fall back to a date of their
 * own, so that the same input gives the same prompt every day.
 */
function environment(variables: Readonly<Record<string, unknown>>): Environment {
  const result = new Environment();
  const globals = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range,
    raise_exception: (message: unknown) => {
      throw new Error(String(message));
    },
  };
  for (const [name, value] of Object.entries({ ...globals, ...variables })) result.set(name, value);
  return result;
}

function range(start: number, stop?: number, step = 1): number[] {
  if (step === 0) throw new Error("range() step must not be zero");
  const [first, end] = stop === undefined ? [0, start] : [start, stop];
  const length = Math.max(0, Math.ceil((end - first) / step));
  if (!(length <= MAX_RANGE)) throw new Refusal("size", `it asked for a range of ${length} numbers`);
  return Array.from({ length }, (_, i) => first + i * step);
}
