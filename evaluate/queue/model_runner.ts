/** The worker's end of the model thread: one request at a time, lines as they come. */
import { PalisadeError } from "../../core/errors.ts";
import { type Runtime, siblingModule, type Thread } from "../../runtime/mod.ts";
import type { ResultLine } from "../results/results.ts";
import type { PlainError, ThreadReply, ThreadRequest, ThreadSetup } from "./model_thread.ts";
import type { Engines, GroupJob, SweepManifest } from "./protocol.ts";

interface Waiting {
  readonly resolve: (cells: readonly string[]) => void;
  readonly reject: (error: Error) => void;
  readonly onLine: (line: ResultLine) => void;
}

/** How a model's thread is started. */
export interface StartOptions {
  /** What runs in the thread. Default `model_thread.ts`. */
  readonly module?: URL;
  /** Called once, before weights are read, with the bytes that they will take. */
  readonly onNeeded?: (weights: number) => void;
}

/** A model in a thread of its own. */
export class ModelRunner implements AsyncDisposable {
  readonly #thread: Thread;
  #waiting?: Waiting;
  #engines?: Engines;
  #onNeeded?: StartOptions["onNeeded"];
  #dead?: Error;
  /** Resolves when the thread ended, whoever wanted it. */
  readonly ended: Promise<Error>;

  private constructor(runtime: Runtime, setup: ThreadSetup, module: URL) {
    this.#thread = runtime.startThread(module, setup, (reply) => this.#receive(reply as ThreadReply));
    this.ended = this.#thread.ended;
    this.ended.then((error) => {
      this.#dead = error;
      this.#waiting?.reject(error);
    });
  }

  /** Starts the thread and loads the model. PalisadeErrors as `loadModel`. */
  static async start(
    runtime: Runtime,
    setup: ThreadSetup,
    { module = siblingModule("./model_thread", import.meta.url), onNeeded }: StartOptions = {},
  ): Promise<ModelRunner> {
    const runner = new ModelRunner(runtime, setup, module);
    runner.#onNeeded = onNeeded;
    try {
      await runner.#wait(() => {});
      return runner;
    } catch (error) {
      await runner[Symbol.asyncDispose]();
      throw error;
    }
  }

  get engines(): Engines {
    return this.#engines!;
  }

  /** The jobs from here on belong to this sweep. */
  async begin(manifest: SweepManifest): Promise<void> {
    await this.#request({ kind: "sweep", manifest }, () => {});
  }

  /** Computes a job's missing cells; returns the ids of all its cells. */
  run(job: GroupJob, onLine: (line: ResultLine) => void): Promise<readonly string[]> {
    return this.#request({ kind: "job", job }, onLine);
  }

  #request(request: ThreadRequest, onLine: (line: ResultLine) => void): Promise<readonly string[]> {
    if (this.#dead) return Promise.reject(this.#dead);
    if (this.#waiting) throw new Error("The model thread is busy with another request");
    const answer = this.#wait(onLine);
    this.#thread.post(request);
    return answer;
  }

  #wait(onLine: (line: ResultLine) => void): Promise<readonly string[]> {
    return new Promise<readonly string[]>((resolve, reject) => {
      this.#waiting = { resolve, reject, onLine };
    }).finally(() => this.#waiting = undefined);
  }

  #receive(reply: ThreadReply): void {
    switch (reply.kind) {
      case "needed":
        return this.#onNeeded?.(reply.weights);
      case "ready":
        this.#engines = reply.engines;
        return this.#waiting?.resolve([]);
      case "line":
        return this.#waiting?.onLine(reply.line);
      case "end":
        return this.#waiting?.resolve(reply.cells);
      case "failure":
        return this.#waiting?.reject(errorOf(reply.error));
      default:
        reply satisfies never;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#thread.terminate();
  }
}

function errorOf({ message, stack, refusal }: PlainError): Error {
  if (refusal) return new PalisadeError(refusal.kind, refusal.code, refusal.said, { where: refusal.where });
  const error = new Error(message);
  if (stack) error.stack = stack;
  return error;
}
