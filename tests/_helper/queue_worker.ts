/**
 * A worker process for tests that goes wrong on purpose:
 * `deno run -A queue_worker.ts URL MODEL FAULT LOCK_MS`, FAULT one of
 * - `none`;
 * - `die-after-sending`: ends itself after the first line was sent and before that is noted in the job;
 * - `die-before-acknowledging`: ends itself when all lines of its first job are sent;
 * - `slow`: its model thread is busy, deaf to all messages, for two lock durations before each line.
 */
import process from "node:process";
import { ModelRunner } from "../../evaluate/queue/model_runner.ts";
import { openServer } from "../../evaluate/queue/server.ts";
import { workOnSweeps } from "../../evaluate/queue/worker.ts";
import { modelHash } from "../../model/store/identity.ts";
import { messageOf } from "../../cli/failure.ts";
import { EVAL_NAMES } from "../../cli/sweep/options.ts";
import { VERSION } from "../../runtime/version.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const [url, path, fault, lock] = process.argv.slice(2);
const lockMs = Number(lock);
const runtime = await currentRuntime();
const note = (text: string) => console.log(text);
const interrupt = new AbortController();
process.on("SIGINT", () => interrupt.abort(new DOMException("Interrupted", "AbortError")));

function die(when: string): () => void {
  return () => {
    if (fault === when) process.kill(process.pid, "SIGKILL");
  };
}

const server = await openServer(url, note);
const sha256 = await modelHash(path, runtime);
const setup = { path, sha256, palisade: VERSION, load: { backend: "wasm", dense: "web" }, slowMs: 2 * lockMs } as const;
const module = fault === "slow" ? new URL("./slow_thread.ts", import.meta.url) : undefined;
const runner = await ModelRunner.start(runtime, setup, { module });
note("ready");
try {
  await workOnSweeps(server, {
    runtime,
    runner,
    sha256,
    palisade: VERSION,
    name: `${fault}-${process.pid}`,
    signal: interrupt.signal,
    messageOf: (error) => messageOf(error, EVAL_NAMES),
    onNote: note,
    lockMs,
    stalledMs: lockMs,
    pollMs: 100,
    hooks: { sent: die("die-after-sending"), computed: die("die-before-acknowledging") },
  });
} catch (error) {
  note(interrupt.signal.aborted ? "interrupted" : String(error));
}
process.exit(0);
