/** `palisade worker`: computes cells that `palisade eval --queue` wants, until it is stopped. */
import { ModelRunner } from "../../evaluate/queue/model_runner.ts";
import { openServer, parseQueueUrl } from "../../evaluate/queue/server.ts";
import { workOnSweeps } from "../../evaluate/queue/worker.ts";
import type { EngineOptions } from "./ask.ts";
import { modelHash } from "../../model/store/identity.ts";
import { EXIT, type Io } from "../io.ts";
import { obtainModel } from "../obtain.ts";
import { createProgress } from "../print/progress.ts";
import { VERSION } from "../version.ts";

export interface WorkerCommand extends EngineOptions {
  readonly queue: string;
  /** Seconds. */
  readonly idle?: number;
}

/** Runs the command; returns the exit code. */
export async function work(command: WorkerCommand, io: Io): Promise<number> {
  parseQueueUrl(command.queue);
  const say = (note: string) => {
    if (!command.quiet) io.err(`${note}\n`);
  };
  using progress = createProgress(io.interactive && !command.quiet);
  // Before the model is fetched and loaded: an address that doesn't answer is known at once.
  await using server = await openServer(command.queue, (note) => say(`palisade: ${note}`));
  const path = await obtainModel(command.model, io, progress, command);
  const sha256 = await modelHash(path, io.runtime);
  const { backend, dense, threads } = command;
  const setup = { path, sha256, palisade: VERSION, load: { backend, dense, threads } };
  await using runner = await ModelRunner.start(io.runtime, setup);
  const name = crypto.randomUUID().slice(0, 8);
  say(`worker ${name} waits at ${server.shown} with ${command.model} (Ctrl-C ends it)`);
  const { groups, lines } = await workOnSweeps(server, {
    runtime: io.runtime,
    runner,
    sha256,
    palisade: VERSION,
    name,
    signal: io.signal,
    onNote: say,
    idleMs: command.idle === undefined ? undefined : command.idle * 1000,
  });
  say(`worker ${name}: ${groups} groups, ${lines} lines`);
  return EXIT.ok;
}
