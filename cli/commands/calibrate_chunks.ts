/** `palisade calibrate --kind fasa`: finds a model's dominant frequency chunks. */
import { calibrateChunks } from "../../model/foresight/calibrate.ts";
import { type Chunks, CHUNKS_FILE, readChunks, writeChunks } from "../../model/foresight/file.ts";
import { CHUNKS_SUFFIX } from "../../model/foresight/find.ts";
import { FIT_TOKENS, planCalibration } from "../../model/gate/fit/plan.ts";
import type { KINDS } from "../../model/gate/fit/text.ts";
import { gateFolder } from "../../model/gate/find.ts";
import { loadModel } from "../../model/model.ts";
import { modelHash } from "../../model/store/identity.ts";
import { LINE } from "../../model/text/frames.ts";
import { autoThreads } from "../../model/threads.ts";
import { hostOf } from "../../runtime/host.ts";
import { checkOutputs, writeWhole } from "../../runtime/output.ts";
import { type EngineOptions, tellsMemory } from "../engine.ts";
import { EXIT, type Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import { obtainModel } from "../obtain.ts";
import { expectedPath, modelInputs, outputsOf } from "../outputs.ts";
import { formatBytes, formatMs } from "../print/format.ts";
import { createProgress } from "../print/progress.ts";

/** Texts that are read: more of them change little (over 70 % of the chunks are the same on any of them). */
const MOST_TEXTS = 6;

export interface ChunkOptions extends EngineOptions {
  readonly text?: readonly string[];
  readonly tokens: number;
  readonly seed: number;
  readonly out?: string;
  readonly json?: boolean;
}

interface Texts {
  readonly kinds: typeof KINDS[number][];
  readonly texts: readonly { readonly name: string; readonly text: string }[];
}

/** Runs it; returns the exit code. */
export async function calibrateChunksOf(options: ChunkOptions, io: Io, { kinds, texts }: Texts): Promise<number> {
  const { runtime, signal } = io, host = hostOf(runtime, "calibrate"), start = performance.now();
  if (options.out === undefined) await host.makeFolder(gateFolder(runtime));
  const progress = createProgress(io.interactive && !options.quiet);
  try {
    const path = await obtainModel(options.model, io, progress, options), sha256 = await modelHash(path, runtime, io);
    const out = options.out ?? await placeFor(options.model, sha256, io);
    const inputs = (options.text ?? []).map((each) => ({ path: each, what: "a text" }));
    await checkOutputs(runtime, outputsOf([["--out", out, CHUNKS_FILE]]), [
      ...inputs,
      ...modelInputs([options.model], io),
    ]);
    await using model = await loadModel(path, runtime, {
      backend: options.backend,
      dense: options.dense,
      threads: options.threads === "auto" ? autoThreads(runtime) : options.threads,
      precision: "float32",
      frame: LINE,
      signal,
      expected: () => ({ tokens: FIT_TOKENS, kept: 0, positions: "trained" }),
      ...tellsMemory("Starting the model", options, io, progress),
    });
    const tokens = Math.min(options.tokens, (MOST_TEXTS + 1) * FIT_TOKENS), { seed } = options;
    const plan = await planCalibration(model, runtime, { tokens, seed, kinds, texts, signal });
    const onProgress = (done: number, total: number) => progress.update("Finding chunks, layers", done, total);
    // One text more than is looked at, to try what was found.
    const last = plan.fit.length > 1 ? plan.fit.length - 1 : plan.fit.length;
    const { heldOut, ...chunks } = await calibrateChunks(model, {
      texts: plan.fit.slice(0, last),
      heldOut: plan.fit[last],
      sources: plan.sources,
      seed,
      sha256,
      onProgress,
      signal,
    });
    const bytes = writeChunks(chunks);
    await writeWhole(runtime, out, bytes);
    progress.clear();
    const ms = performance.now() - start, figures = figuresOf(chunks);
    if (options.json) {
      printJson(io, "calibrate", { out, bytes: bytes.length, ms, info: chunks.info, heldOut, ...figures });
    } else {
      const { best, mean, top } = figures, percent = (share: number) => `${(100 * share).toFixed(1)} %`;
      const found = heldOut === null ? "" : `, together ${percent(heldOut)} in a text that was not looked at`;
      const each = `of the ${top} highest entries the best quarter of the chunks finds ${percent(best)}, each alone`;
      io.out(`${model.name}: ${each} (all: ${percent(mean)})${found}\n`);
      io.out(`wrote ${out}, ${formatBytes(bytes.length)}, in ${formatMs(ms)}\n`);
    }
    return EXIT.ok;
  } finally {
    progress.clear();
  }
}

/** Called like the model's file; with the beginning of its hash where that name is another model's. */
async function placeFor(name: string, sha256: string, io: Io): Promise<string> {
  const host = hostOf(io.runtime, "calibrate"),
    base = expectedPath(name, io).split(/[/\\]/).at(-1)!.replace(/\.gguf$/, "");
  const place = (own: string) => host.join(gateFolder(io.runtime), `${own}${CHUNKS_SUFFIX}`);
  if (await host.info(place(base)) === undefined) return place(base);
  const other = await readChunks(place(base), io.runtime).catch(() => undefined);
  return other && other.info.model.sha256 !== sha256 ? place(`${base}-${sha256.slice(0, 12)}`) : place(base);
}

/** Mean agreement of each head's best quarter, and of all chunks. */
function figuresOf({ agreement, shape: [layers, kvHeads, count], info: { top } }: Omit<Chunks, "name">) {
  const quarter = Math.max(1, Math.round(count / 4));
  let best = 0, all = 0;
  for (let head = 0; head < layers * kvHeads; head++) {
    const mine = agreement.slice(head * count, (head + 1) * count).sort().reverse();
    best += mine.slice(0, quarter).reduce((a, b) => a + b, 0) / quarter;
    all += mine.reduce((a, b) => a + b, 0) / count;
  }
  return { best: best / (layers * kvHeads), mean: all / (layers * kvHeads), top };
}
