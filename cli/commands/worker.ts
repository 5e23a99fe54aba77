/** `palisade worker`: computes cells that `palisade eval --queue` wants, until it is stopped. */
import { ModelRunner } from "../../evaluate/queue/model_runner.ts";
import { openServer, parseQueueUrl } from "../../evaluate/queue/server.ts";
import { workOnSweeps } from "../../evaluate/queue/worker.ts";
import { command } from "../command.ts";
import { ENGINE, tellsMemory } from "../engine.ts";
import { modelHash } from "../../model/store/identity.ts";
import { messageOf } from "../failure.ts";
import { EVAL_NAMES } from "../sweep/options.ts";
import { EXIT, EXIT_CODES, type Io } from "../io.ts";
import { obtainModel } from "../obtain.ts";
import { printJson } from "../json/print.ts";
import { number, type OptionTable, type Values } from "../options.ts";
import { formatBytes } from "../print/format.ts";
import { createProgress } from "../print/progress.ts";
import { VERSION } from "../../runtime/version.ts";

const OPTIONS = {
  queue: {
    value: "url",
    help: "Valkey or Redis: redis://[USER:PASSWORD@]HOST:PORT/DB",
    required: true,
    personal: true,
    secret: true,
  },
  idle: {
    value: "seconds",
    help: "end after so long without work; default: never",
    read: number(0, 1e6, { above: true }),
  },
  ...ENGINE,
  json: { help: "print one object at the end" },
} satisfies OptionTable;

type WorkerOptions = Values<typeof OPTIONS>;

/** `palisade worker`. */
export const workerCommand = command({
  options: OPTIONS,
  notes: [EXIT_CODES],
  run: work,
});

/** Runs the command; returns the exit code. */
async function work(options: WorkerOptions, io: Io): Promise<number> {
  parseQueueUrl(options.queue);
  const say = (note: string) => {
    if (!options.quiet) io.err(`${note}\n`);
  };
  using progress = createProgress(io.interactive && !options.quiet);
  // Before the model is fetched and loaded: an address that doesn't answer is known at once.
  await using server = await openServer(options.queue, (note) => say(`palisade: ${note}`));
  const path = await obtainModel(options.model, io, progress, options);
  const sha256 = await modelHash(path, io.runtime, io);
  const { backend, dense, threads } = options;
  const setup = { path, sha256, palisade: VERSION, load: { backend, dense, threads } };
  const { onNeeded } = tellsMemory("Starting the model", options, io, progress);
  await using runner = await ModelRunner.start(io.runtime, setup, {
    onNeeded(weights) {
      say(`loading ${formatBytes(weights)} of weights`);
      onNeeded(weights);
    },
  });
  const name = crypto.randomUUID().slice(0, 8);
  say(`worker ${name} waits at ${server.shown} with ${options.model} (Ctrl-C ends it)`);
  const { groups, lines } = await workOnSweeps(server, {
    runtime: io.runtime,
    runner,
    sha256,
    palisade: VERSION,
    name,
    signal: io.signal,
    onNote: say,
    // Who reads it typed the options of eval.
    messageOf: (error) => messageOf(error, EVAL_NAMES),
    idleMs: options.idle === undefined ? undefined : options.idle * 1000,
  });
  say(`worker ${name}: ${groups} groups, ${lines} lines`);
  if (options.json) printJson(io, "worker", { worker: name, groups, lines });
  return EXIT.ok;
}
