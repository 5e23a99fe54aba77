/**
 * The list of commands. Each one's options and work are in `commands/`, loaded when it is named. Deno reads modules that
 * are named by plain literals before anything runs, later ones too; `as string` keeps it from that. Bundlers, which drop
 * types first, see the literal.
 */
import { type Command, type Listed, listed } from "./command.ts";

/** Every command, in the order of help. */
export const COMMANDS: readonly Listed[] = [
  listed(
    "ask",
    "answer questions about a text, evicted",
    async () =>
      (await (import("./commands/ask.ts" as string) as Promise<typeof import("./commands/ask.ts")>)).askCommand,
  ),
  listed(
    "read",
    "read a text once, for questions later",
    async () =>
      (await (import("./commands/read.ts" as string) as Promise<typeof import("./commands/read.ts")>)).readCommand,
  ),
  listed(
    "snapshots",
    "list, check and remove what was read",
    async () =>
      (await (import("./commands/snapshots.ts" as string) as Promise<typeof import("./commands/snapshots.ts")>))
        .snapshotsCommand,
  ),
  listed(
    "demo",
    "the full cache beside three evicted ones",
    async () =>
      (await (import("./commands/demo.ts" as string) as Promise<typeof import("./commands/demo.ts")>)).demoCommand,
  ),
  listed(
    "show",
    "a text shaded by how many heads keep a token",
    async () =>
      (await (import("./commands/show.ts" as string) as Promise<typeof import("./commands/show.ts")>)).showCommand,
  ),
  listed(
    "evict",
    "which keys and values of a dump stay",
    async () =>
      (await (import("./commands/evict.ts" as string) as Promise<typeof import("./commands/evict.ts")>)).evictCommand,
  ),
  listed(
    "eval",
    "measure what policies cost in answers; resumes",
    async () =>
      (await (import("./commands/eval.ts" as string) as Promise<typeof import("./commands/eval.ts")>)).evalCommand,
  ),
  listed(
    "worker",
    "compute cells for eval --queue, on any machine",
    async () =>
      (await (import("./commands/worker.ts" as string) as Promise<typeof import("./commands/worker.ts")>))
        .workerCommand,
  ),
  listed(
    "cell",
    "cells of eval, a line of JSON in, a line out",
    async () =>
      (await (import("./commands/cell.ts" as string) as Promise<typeof import("./commands/cell.ts")>)).cellCommand,
  ),
  listed(
    "report",
    "what results files of eval say, as tables",
    async () =>
      (await (import("./commands/report.ts" as string) as Promise<typeof import("./commands/report.ts")>))
        .reportCommand,
  ),
  listed(
    "calibrate",
    "fit a gate for a model on this machine; resumes",
    async () =>
      (await (import("./commands/calibrate.ts" as string) as Promise<typeof import("./commands/calibrate.ts")>))
        .calibrateCommand,
  ),
  listed(
    "models",
    "list, fetch, find and remove model files",
    async () =>
      (await (import("./commands/models.ts" as string) as Promise<typeof import("./commands/models.ts")>))
        .modelsCommand,
  ),
  listed(
    "policies",
    "list the eviction policies and their papers",
    async () =>
      (await (import("./commands/policies.ts" as string) as Promise<typeof import("./commands/policies.ts")>))
        .policiesCommand,
  ),
  listed(
    "doctor",
    "what this machine offers and lacks, and why",
    async () =>
      (await (import("./commands/doctor.ts" as string) as Promise<typeof import("./commands/doctor.ts")>))
        .doctorCommand,
  ),
  listed(
    "config",
    "settings of files and variables, and where from",
    async () =>
      (await (import("./commands/config.ts" as string) as Promise<typeof import("./commands/config.ts")>))
        .configCommand,
  ),
  listed(
    "completion",
    "a script that has Tab complete what is typed",
    async () =>
      (await (import("./commands/completion.ts" as string) as Promise<typeof import("./commands/completion.ts")>))
        .completionCommand,
    true,
  ),
  listed(
    "schema",
    "the JSON Schema of what commands print",
    async () =>
      (await (import("./commands/schema.ts" as string) as Promise<typeof import("./commands/schema.ts")>))
        .schemaCommand,
    true,
  ),
];

/** Every command with its modules loaded. */
export async function allCommands(): Promise<Command[]> {
  return await Promise.all(COMMANDS.map((each) => each.load()));
}
