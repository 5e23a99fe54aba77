/**
 * Threads that run kernels beside this one, which is rank 0. Each has module instances of its own. Commands and answers
 * go through one stretch of shared memory per thread; who waits is awake for at most 0.5 ms, then sleeps (`wait.ts`).
 *
 * Commands that need no answer are held back and go along with the next one that does. The thread that starts a pool
 * must be allowed to wait: a web page's own thread is not, its workers are.
 */
import { option, type PalisadeError, resourceError } from "../../core/errors.ts";
import type { Thread } from "../../runtime/interface.ts";
import { siblingModule } from "../../runtime/sibling_module.ts";
import { wideVectors } from "../../runtime/wide_vectors.ts";
import { Barrier } from "./barrier.ts";
import type { WasmOptions } from "../module.ts";
import type { Asked } from "./command.ts";
import { Waiter } from "./wait.ts";
import { errorOf, FAILURE, type Message, messageBytes, MessageMemory } from "./message.ts";

/** How a thread is started: `Runtime.startThread`. */
export type StartThread = (moduleUrl: URL, data: unknown, listener: (message: unknown) => void) => Thread;

export interface PoolOptions {
  /** Threads with this one, 2 … 64. */
  readonly threads: number;
  readonly startThread: StartThread;
  /** Which build of the kernels; memory is per thread. */
  readonly kernels?: WasmOptions;
}

/** What a thread of a pool is started with. */
export interface PoolData {
  readonly mailbox: SharedArrayBuffer;
  readonly barrier: SharedArrayBuffer;
  readonly rank: number;
  readonly size: number;
  readonly kernels: WasmOptions;
}

/** Words at the front of a mailbox, a cache line apart. */
export const WORD = { request: 0, count: 1, reply: 16, stop: 32 } as const;
/** Where its messages begin. */
export const MESSAGES = 256;
const MAILBOX_BYTES = 1 << 16;
/** Most bytes of commands and inputs, or of answers, at a time. Address space, not memory. */
const MAILBOX_LIMIT = 2 ** 30;
const BARRIER_LIMIT = 2 ** 29;
/** Commands without an answer wait for company up to about this many bytes. */
const HELD_BYTES = 1 << 22;
/** How long this thread sleeps before it looks at its event loop, milliseconds. */
const SLICE_MS = 50;
/** How long a command waits for the one before it, milliseconds: this thread has done its part of that by then. */
const TURN_MS = 1;
/** How long a call that can't look at the event loop waits for another thread, milliseconds. */
const PATIENCE_MS = 120_000;

/** Whether this thread may sleep until another wakes it. */
export function mayWait(): boolean {
  try {
    return Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0) === "timed-out";
  } catch {
    return false;
  }
}

/** A command under way. */
export interface Ask<Output> {
  answer?: Message;
  error?: Error;
  readonly unpack: (answer: Message) => Output;
  /** Gets the answer while its arrays are views of shared memory; none of it is copied then. */
  readonly take?: (answer: Message) => void;
}

/** What goes with a command. */
export interface Sending {
  /** Made for the command: given back once that is written, or won't be. */
  readonly made?: Disposable;
}

interface Queued extends Sending {
  readonly message: Message;
  readonly ask?: Ask<unknown>;
  readonly onFailure?: (error: Error) => void;
}

export class ThreadPool implements Disposable {
  /** Threads, this one included. */
  readonly size: number;
  readonly kernels: WasmOptions;
  /** What all threads see at once. */
  readonly barrier: Barrier;
  readonly #others: readonly OtherThread[];
  #next = 1;

  private constructor(kernels: WasmOptions, barrier: Barrier, others: readonly OtherThread[]) {
    this.size = others.length + 1;
    this.kernels = kernels;
    this.barrier = barrier;
    this.#others = others;
  }

  /**
   * @throws PalisadeError (resources) `threads.unavailable` when this thread may not wait or none can be started,
   * `wasm.start`. RangeError for another number of threads than 2 to 64.
   */
  static async start({ threads, startThread, kernels: given = {} }: PoolOptions): Promise<ThreadPool> {
    if (!Number.isInteger(threads) || threads < 2 || threads > 64) {
      throw new RangeError(`Cannot start a pool of ${threads} threads: want 2 to 64`);
    }
    if (!mayWait()) throw unavailable("this thread may not wait for another");
    const others: OtherThread[] = [];
    // Other threads would not know.
    const kernels = { wideVectors: wideVectors().on, ...given };
    try {
      const barrier = Barrier.create(threads, BARRIER_LIMIT);
      // Who lost one thread may wait for it forever, so all are lost.
      const onEnd = (reason: PalisadeError) => others.forEach((other) => other.end(reason));
      for (let rank = 1; rank < threads; rank++) {
        others.push(new OtherThread({ rank, size: threads, kernels }, barrier, startThread, onEnd));
      }
      await Promise.all(others.map((other) => other.ready));
      return new ThreadPool(kernels, barrier, others);
    } catch (error) {
      for (const other of others) other.stop();
      throw error;
    }
  }

  /** A number for a new object that threads are to hold. */
  newId(): number {
    return this.#next++;
  }

  /** A command whose answer nobody waits for. `onFailure` is called at the latest when a later answer comes. */
  tell<I>(
    rank: number,
    command: Asked<I, unknown>,
    input: I,
    { onFailure, made }: Sending & { readonly onFailure?: (error: Error) => void } = {},
  ): void {
    this.#others[rank - 1].tell({ message: command.pack(input), onFailure, made });
  }

  /** Sends a command at once. */
  ask<I, O>(rank: number, command: Asked<I, O>, input: I): Ask<O> {
    const ask: Ask<O> = { unpack: (answer) => command.unpack(answer) };
    this.#others[rank - 1].ask({ message: command.pack(input), ask });
    return ask;
  }

  /**
   * Sends a command at once. `take` gets what it gives before {@link answer} ends, its arrays as views of shared memory
   * that are valid during the call.
   */
  askToTake<I, O>(
    rank: number,
    command: Asked<I, O>,
    input: I,
    take: (given: O) => void,
    { made }: Sending = {},
  ): Ask<void> {
    const ask: Ask<void> = { unpack: () => {}, take: (answer) => take(command.unpack(answer)) };
    this.#others[rank - 1].ask({ message: command.pack(input), ask, made });
    return ask;
  }

  /** What a command gives. @throws as the command; PalisadeError `threads.ended`. */
  async answer<O>(rank: number, ask: Ask<O>): Promise<O> {
    while (!ask.answer) {
      if (ask.error) throw ask.error;
      this.#others[rank - 1].advance(SLICE_MS);
      // A turn of the event loop, which hears of a thread that has ended.
      if (!ask.answer && !ask.error) await new Promise((resolve) => setTimeout(resolve, 0));
    }
    return ask.unpack(ask.answer);
  }

  /** The same without the event loop. @throws PalisadeError `threads.ended` when no answer comes. */
  answerNow<O>(rank: number, ask: Ask<O>): O {
    const end = Date.now() + PATIENCE_MS;
    while (!ask.answer) {
      if (!ask.error && Date.now() > end) throw ended(`no answer in ${PATIENCE_MS / 1000} s`);
      if (ask.error) throw ask.error;
      this.#others[rank - 1].advance(SLICE_MS);
    }
    return ask.unpack(ask.answer);
  }

  /** Waits at the barrier until every thread does. @throws PalisadeError `threads.ended`. */
  async meet(): Promise<void> {
    const generation = this.barrier.arrive();
    while (!this.barrier.met(generation, SLICE_MS)) {
      await new Promise((resolve) => setTimeout(resolve, 0));
      const { gone } = this.#others[0];
      if (gone) throw gone;
    }
  }

  [Symbol.dispose](): void {
    for (const other of this.#others) other.stop();
  }
}

/** One other thread, as seen from here. */
class OtherThread {
  /** Resolves when its kernels run. */
  readonly ready: Promise<void>;
  /** Why it is no more. */
  gone?: PalisadeError;
  readonly #thread: Thread;
  readonly #memory: MessageMemory;
  readonly #control: Int32Array;
  readonly #replies: Waiter;
  #held: Queued[] = [];
  #heldBytes = 0;
  #flying: Queued[] = [];

  constructor(
    place: Pick<PoolData, "rank" | "size" | "kernels">,
    barrier: Barrier,
    start: StartThread,
    onEnd: (reason: PalisadeError) => void,
  ) {
    const mailbox = new SharedArrayBuffer(MAILBOX_BYTES, { maxByteLength: MAILBOX_LIMIT });
    this.#memory = new MessageMemory(mailbox);
    this.#control = new Int32Array(mailbox, 0, MESSAGES / 4);
    this.#replies = new Waiter(this.#control, WORD.reply);
    const data: PoolData = { ...place, mailbox, barrier: barrier.buffer };
    let started: (message: unknown) => void;
    const first = new Promise<unknown>((resolve) => started = resolve);
    this.#thread = start(siblingModule("./pool_worker", import.meta.url), data, (message) => started(message));
    this.#thread.ended.then(({ message }) => onEnd(ended(message)));
    this.ready = Promise.race([first, this.#thread.ended]).then((message) => {
      if (message !== "ready") throw unavailable(message instanceof Error ? message.message : String(message));
      this.#thread.unref();
    });
  }

  tell(queued: Queued): void {
    if (this.gone) throw this.gone;
    this.#held.push(queued);
    this.#heldBytes += messageBytes(queued.message);
    if (this.#heldBytes > HELD_BYTES) this.#flush();
  }

  ask(queued: Queued): void {
    if (this.gone) throw this.gone;
    // Else it would lie here until this thread asks for the other's answer, after its own part of this one as well.
    if (this.#flying.length > 0) this.advance(TURN_MS);
    this.#held.push(queued);
    this.#heldBytes += messageBytes(queued.message);
    if (this.#flying.length === 0) this.#post();
  }

  /** Sleeps until what is under way is done, at most `ms`; then sends what was held back. */
  advance(ms: number): void {
    if (this.#flying.length > 0) {
      const request = Atomics.load(this.#control, WORD.request);
      const reply = Atomics.load(this.#control, WORD.reply);
      if (reply !== request) this.#replies.changed(reply, ms);
      if (Atomics.load(this.#control, WORD.reply) !== request) return;
      this.#receive();
    }
    if (this.#held.length > 0) this.#post();
  }

  stop(): void {
    this.end(ended("it was stopped"));
    Atomics.store(this.#control, WORD.stop, 1);
    Atomics.add(this.#control, WORD.request, 1);
    Atomics.notify(this.#control, WORD.request);
    this.#thread.terminate().catch(() => {});
  }

  #flush(): void {
    const end = Date.now() + PATIENCE_MS;
    while (this.#flying.length > 0 && this.#held.length > 0) {
      if (Date.now() > end) throw ended(`no answer in ${PATIENCE_MS / 1000} s`);
      this.advance(SLICE_MS);
    }
    if (this.#held.length > 0) this.#post();
  }

  #post(): void {
    try {
      this.#memory.reserve(MESSAGES + this.#heldBytes);
    } catch (cause) {
      const message = `Cannot pass ${this.#heldBytes} bytes to another thread: want at most ${MAILBOX_LIMIT}`;
      return this.#fail(this.#held.splice(0), resourceError("threads.memory", message, option("threads"), cause));
    }
    let at = MESSAGES;
    for (const { message, made } of this.#held) {
      at = this.#memory.write(at, message);
      made?.[Symbol.dispose]();
    }
    this.#control[WORD.count] = this.#held.length;
    this.#flying = this.#held;
    this.#held = [];
    this.#heldBytes = 0;
    Atomics.add(this.#control, WORD.request, 1);
    Atomics.notify(this.#control, WORD.request);
  }

  #receive(): void {
    this.#memory.refresh();
    let at = MESSAGES;
    for (const { ask, onFailure } of this.#flying.splice(0)) {
      const { message, end } = this.#memory.read(at);
      at = end;
      const error = message.operation === FAILURE ? errorOf(message) : undefined;
      if (error) onFailure?.(error);
      if (!ask) continue;
      if (error) ask.error = error;
      else if (ask.take) taken(ask, message);
      else ask.answer = { ...message, arrays: message.arrays.map((array) => array?.slice()) };
    }
  }

  /** Nothing is answered from here on. */
  end(reason: PalisadeError): void {
    this.gone ??= reason;
    this.#fail([...this.#flying.splice(0), ...this.#held.splice(0)], this.gone);
  }

  #fail(queued: readonly Queued[], error: Error): void {
    this.#heldBytes = 0;
    for (const { ask, onFailure, made } of queued) {
      made?.[Symbol.dispose]();
      if (ask) ask.error = error;
      onFailure?.(error);
    }
  }
}

function taken(ask: Ask<unknown>, { operation, numbers, arrays }: Message): void {
  try {
    ask.take!({ operation, numbers, arrays });
    ask.answer = { operation, numbers: [], arrays: [] };
  } catch (error) {
    ask.error = error as Error;
  }
}

function ended(reason: string): PalisadeError {
  return resourceError("threads.ended", `A thread of the kernels has ended: ${reason}`, option("threads"));
}

function unavailable(reason: string): PalisadeError {
  return resourceError("threads.unavailable", `Cannot start threads for the kernels: ${reason}`, option("threads"));
}
