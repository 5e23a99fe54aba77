/** What every command that runs a model can be told, and starting one. */
import { BACKEND_CHOICES } from "../model/device.ts";
import { DENSE_CHOICES } from "../model/dense/pick.ts";
import { loadModel, type LoadOptions, type Model } from "../model/model.ts";
import { MOST_THREADS, type ThreadChoice } from "../model/threads.ts";
import { DEFAULTS } from "../model/defaults.ts";
import type { Io } from "./io.ts";
import { obtainModel } from "./obtain.ts";
import { type OptionTable, type Values, whole } from "./options.ts";
import { modelWords } from "./words.ts";
import { formatBytes, formatCount } from "./print/format.ts";
import type { Progress } from "./print/progress.ts";

/** What help says of the policy taken when none is named (`model/default_policy.ts`). */
export const DEFAULT_POLICY = "gate, else self-gate";

/** What help says of the default budget: the share, and the tokens per head that stay in any case. */
export const DEFAULT_KEEP = `${DEFAULTS.keep}, at least ${DEFAULTS.leastKept}`;

/** What help says of the refit done when none is named. */
export const DEFAULT_REFIT = `both; ${DEFAULTS.refit} with --policy`;

/** How models are run. */
export const ENGINES = {
  backend: {
    value: "name",
    help: "attention kernels",
    choices: BACKEND_CHOICES,
    shown: DEFAULTS.backend,
  },
  dense: {
    value: "name",
    help: "dense layers",
    choices: DENSE_CHOICES,
    shown: DEFAULTS.dense,
  },
  threads: {
    value: "n",
    help: "kernel threads; auto: cores, up to 4",
    read: threadCount,
    preset: "auto",
    words: () => ["auto"],
    more: "threads of the kernels, 1 to 64; `auto`: physical cores, up to 4",
  },
  offline: { help: "never touch the network" },
  quiet: { help: "no progress, no report" },
} satisfies OptionTable;

/** The same of one model, and which one. */
export const ENGINE = {
  model: {
    value: "name|file",
    help: "named model, FILE.gguf, or OWNER/REPOSITORY[:QUANT] of the hub",
    preset: DEFAULTS.model,
    words: modelWords,
    here: "models",
    more: "a named model, a GGUF file, or `OWNER/REPOSITORY[:QUANT]` of the hub",
  },
  ...ENGINES,
} satisfies OptionTable;

/** What {@link ENGINE} gives. */
export type EngineOptions = Values<typeof ENGINE>;

/** Finds or fetches the model and starts it, with progress. `load`: what else the command was told of it. */
export async function startModel(
  options: EngineOptions,
  io: Io,
  progress: Progress,
  load: LoadOptions = {},
): Promise<Model> {
  try {
    const path = await obtainModel(options.model, io, progress, options);
    return await loadModel(path, io.runtime, {
      ...load,
      backend: options.backend,
      dense: options.dense,
      threads: options.threads,
      signal: io.signal,
      ...tellsMemory("Starting the model", options, io, progress),
      onDeviceLost: (why) => {
        progress.clear();
        io.err(`${why}; going on without it\n`);
      },
    });
  } finally {
    progress.clear();
  }
}

/** Tells what a model that is loaded will take, in its progress, and whether that much is free. */
export function tellsMemory(
  label: string,
  { quiet }: Pick<EngineOptions, "quiet">,
  io: Io,
  progress: Progress,
): Required<Pick<LoadOptions, "onNeeded" | "onProgress">> {
  let told = label;
  return {
    onNeeded(weights, needed) {
      const { cache = 0, working = 0, tokens = 0 } = needed ?? {}, { freeBytes = Infinity } = io.runtime.memory();
      told = `${label}, ${formatBytes(weights)} of weights`;
      if (tokens > 0) told += `, ${formatBytes(cache + working)} for ${formatCount(tokens)} tokens`;
      const total = weights + cache + working;
      if (total <= freeBytes || quiet) return;
      progress.clear();
      io.err(shortOf(total, freeBytes));
    },
    onProgress: (done, total) => progress.update(told, done, total),
  };
}

function shortOf(needed: number, free: number): string {
  return `note: this takes ${formatBytes(needed)} of memory at least, and ${formatBytes(free)} are free\n`;
}

/** `auto`, or a number of threads. */
function threadCount(text: string): ThreadChoice {
  return text === "auto" ? text : whole(1, MOST_THREADS)(text);
}
