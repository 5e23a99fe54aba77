/**
 * `palisade calibrate`: fits a gate for a model on this machine and writes it where `gate`, or `kvzap`, looks for it; or
 * trains the soft tokens of `judge-q`, or finds the frequency chunks of `fasa` or statistics of queries, and writes them
 * beside the gates.
 */
import { inputError, option } from "../../core/errors.ts";
import { calibrate as fit, type Calibration } from "../../model/gate/fit/calibrate.ts";
import { CHUNKS_FILE, readChunks, writeChunks } from "../../model/foresight/file.ts";
import { CHUNKS_SUFFIX } from "../../model/foresight/find.ts";
import { type CalibrationPlan, FIT_TOKENS, planCalibration } from "../../model/gate/fit/plan.ts";
import { KINDS } from "../../model/gate/fit/text.ts";
import { CALIBRATION_STATE } from "../../model/gate/fit/state.ts";
import { GATE_FILE, writeGate } from "../../model/gate/file.ts";
import { GATE_SUFFIX, gateFolder, loadGate } from "../../model/gate/find.ts";
import {
  readSoftTokens,
  SOFT_TOKENS_FILE,
  SOFT_TOKENS_SUFFIX,
  writeSoftTokens,
} from "../../model/policy_files/soft_tokens.ts";
import { type TrainedSoftTokens, TRAINING_STATE, trainSoftTokens } from "../../model/soft_tokens/calibrate.ts";
import { readStatistics, STATISTICS_FILE, writeStatistics } from "../../model/statistics/file.ts";
import { STATISTICS_SUFFIX } from "../../model/statistics/find.ts";
import { modelHash } from "../../model/store/identity.ts";
import { loadModel } from "../../model/model.ts";
import { LINE } from "../../model/text/frames.ts";
import { autoThreads } from "../../model/threads.ts";
import { command } from "../command.ts";
import { CHUNK_TOKENS, findChunksIn, tellFound } from "./calibrate_chunks.ts";
import { findStatisticsIn, plannedTokens, tellStatistics } from "./calibrate_statistics.ts";
import { ENGINE, tellsMemory } from "../engine.ts";
import { formatBytes, formatMs } from "../print/format.ts";
import { EXIT, EXIT_CODES, type Io } from "../io.ts";
import { obtainModel } from "../obtain.ts";
import { printJson } from "../json/print.ts";
import { list, type OptionTable, repeated, type Values, whole } from "../options.ts";
import { refuseRepeated } from "../../evaluate/sweep/lists.ts";
import { hostOf } from "../../runtime/host.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { checkOutputs, type OutputKind, writeWhole } from "../../runtime/output.ts";
import { expectedPath, modelInputs, outputsOf } from "../outputs.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { tableText } from "../print/table.ts";

const OPTIONS = {
  kind: {
    value: "kind",
    help: "what is fitted, for the policy of that name",
    choices: ["gate", "kvzap", "judge-q", "fasa", "statistics"],
    preset: "gate",
  },
  softTokens: { value: "n", help: "soft tokens, for judge-q", read: whole(1, 1024), preset: 8 },
  steps: { value: "n", help: "steps of training, for judge-q", read: whole(1, 100_000), preset: 60 },
  text: { value: "file", help: "your own text beside the built-in one; repeatable", read: repeated },
  tokens: { value: "n", help: "tokens to fit on", read: whole(1000, 1_000_000), preset: 10_000 },
  seed: { value: "n", help: "seed of the built-in text", read: whole(0, 2 ** 40), preset: 1 },
  kinds: { value: "list", help: "kinds of built-in text", read: list, preset: KINDS.join(","), words: () => KINDS },
  out: { value: "file", help: "where to write it instead of the cache folder", own: true },
  json: { help: "print one object with all figures" },
  ...ENGINE,
} satisfies OptionTable;

/** What a kind leaves in the gates' folder. */
interface Fits {
  readonly suffix: string;
  readonly file: OutputKind;
  /** What a stopped run goes on from; those of a minute begin anew. */
  readonly state?: OutputKind;
  readonly read: (path: string, runtime: Runtime) => Promise<{ readonly info: { readonly model: { sha256: string } } }>;
}

const GATE: Fits = { suffix: GATE_SUFFIX, file: GATE_FILE, state: CALIBRATION_STATE, read: loadGate };
const FITS: Readonly<Record<string, Fits>> = {
  gate: GATE,
  kvzap: { ...GATE, suffix: `.kvzap${GATE_SUFFIX}` },
  "judge-q": { suffix: SOFT_TOKENS_SUFFIX, file: SOFT_TOKENS_FILE, state: TRAINING_STATE, read: readSoftTokens },
  fasa: { suffix: CHUNKS_SUFFIX, file: CHUNKS_FILE, read: readChunks },
  statistics: { suffix: STATISTICS_SUFFIX, file: STATISTICS_FILE, read: readStatistics },
};

type CalibrateOptions = Values<typeof OPTIONS>;

/** `palisade calibrate`. */
export const calibrateCommand = command({
  options: OPTIONS,
  notes: [EXIT_CODES],
  run: calibrate,
});

/** Runs the command; returns the exit code. A stopped run goes on where it was when it is started again. */
async function calibrate(options: CalibrateOptions, io: Io): Promise<number> {
  const host = hostOf(io.runtime, "calibrate");
  const kinds = parseKinds(options.kinds);
  if (options.out === undefined) await host.makeFolder(gateFolder(io.runtime));
  let out = options.out ?? defaultOut(options, io);
  await checkPlaces(out, options, io);
  const texts = await readTexts(options.text ?? [], io);
  const progress = createProgress(io.interactive && !options.quiet), start = performance.now();
  const { seed, kind } = options, finds = kind === "fasa" || kind === "statistics";
  const tokens = kind === "fasa" ? Math.min(options.tokens, CHUNK_TOKENS) : options.tokens;
  try {
    const path = await obtainModel(options.model, io, progress, options);
    const sha256 = await modelHash(path, io.runtime, io);
    if (options.out === undefined && await isOfAnother(out, options.kind, sha256, io)) {
      out = defaultOut(options, io, sha256);
      await checkPlaces(out, options, io);
    }
    await using model = await loadModel(path, io.runtime, {
      backend: options.backend,
      dense: options.dense,
      // As many for the dense layers as for the kernels: minutes of work that nobody talks to meanwhile.
      threads: options.threads === "auto" ? autoThreads(io.runtime) : options.threads,
      // Many rows at a time: float32 takes half the time of quantised weights.
      precision: "float32",
      // A gate is of texts as they are.
      frame: LINE,
      signal: io.signal,
      // Hidden states of all texts, for chunks of one at a time, and of one text the keys and values of one layer.
      expected: () => ({ tokens: finds ? FIT_TOKENS : tokens, kept: 0, positions: "trained" }),
      ...tellsMemory("Starting the model", options, io, progress),
    });
    const planned = kind === "statistics" ? plannedTokens(tokens, model.config.contextLength) : tokens;
    const plan = await planCalibration(model, io.runtime, { tokens: planned, seed, kinds, texts, signal: io.signal });
    const statePath = stateOf(out);
    if (kind === "statistics") {
      const onProgress = (done: number, total: number) => progress.update("Summing up queries, layers", done, total);
      const found = await findStatisticsIn(model, plan, { sha256, onProgress, signal: io.signal });
      const bytes = writeStatistics(found);
      await writeWhole(io.runtime, out, bytes);
      progress.clear();
      const ms = performance.now() - start;
      tellStatistics(found, { out, bytes: bytes.length, ms, model: model.name }, options, io);
      return EXIT.ok;
    }
    if (kind === "fasa") {
      const onProgress = (done: number, total: number) => progress.update("Finding chunks, layers", done, total);
      const found = await findChunksIn(model, plan, { sha256, onProgress, signal: io.signal });
      const bytes = writeChunks(found.chunks);
      await writeWhole(io.runtime, out, bytes);
      progress.clear();
      tellFound(found, { out, bytes: bytes.length, ms: performance.now() - start, model: model.name }, options, io);
      return EXIT.ok;
    }
    if (kind === "judge-q") {
      const { softTokens: count, steps } = options;
      const onProgress = (done: number, total: number) => progress.update("Training soft tokens, steps", done, total);
      const trained = await trainSoftTokens(model, io.runtime, plan, {
        sha256,
        count,
        steps,
        statePath,
        signal: io.signal,
        onProgress,
      });
      const bytes = writeSoftTokens(trained.info, trained.embeddings);
      await writeWhole(io.runtime, out, bytes);
      await host.remove(statePath);
      progress.clear();
      tellTrained(trained, { out, bytes: bytes.length, ms: performance.now() - start, model: model.name }, options, io);
      return EXIT.ok;
    }
    const result = await fit(model, io.runtime, plan, {
      sha256,
      ...(options.kind === "kvzap" && { towards: "kvzip-plus" }),
      statePath,
      signal: io.signal,
      onProgress: progressOf(progress, plan, model.config.layers),
    });
    const bytes = writeGate(result.info, result.gate);
    await writeWhole(io.runtime, out, bytes);
    await host.remove(statePath);
    progress.clear();
    const ms = performance.now() - start;
    if (options.json) {
      printJson(io, "calibrate", { out, bytes: bytes.length, ms, ...withoutWeights(result) });
    } else io.out(`${summary(result, model.name)}\nwrote ${out}, ${formatBytes(bytes.length)}, in ${formatMs(ms)}\n`);
    return EXIT.ok;
  } finally {
    progress.clear();
  }
}

/** In the cache folder, called like the model's file; with the beginning of its hash where that name is another's. */
function defaultOut({ model, kind }: CalibrateOptions, io: Io, sha256?: string): string {
  const name = baseName(expectedPath(model, io)).replace(/\.gguf$/, "");
  const own = sha256 === undefined ? name : `${name}-${sha256.slice(0, 12)}`;
  return hostOf(io.runtime, "calibrate").join(
    gateFolder(io.runtime),
    `${own}${FITS[kind].suffix}`,
  );
}

/** Two models may have files of one name: what is there may be the other's. */
async function isOfAnother(path: string, kind: CalibrateOptions["kind"], sha256: string, { runtime }: Io) {
  if (await hostOf(runtime, "calibrate").info(path) === undefined) return false;
  const there = await FITS[kind].read(path, runtime).catch(() => undefined);
  return there !== undefined && there.info.model.sha256 !== sha256;
}

/** File and state must find their places before the hours of work, not after. */
async function checkPlaces(out: string, { model, kind, text = [] }: CalibrateOptions, io: Io): Promise<void> {
  const { file, state } = FITS[kind];
  const outputs = outputsOf([["--out", out, file], ...state ? [["--out (.state)", stateOf(out), state] as const] : []]);
  const inputs = text.map((path) => ({ path, what: "a text" }));
  await checkOutputs(io.runtime, outputs, [...inputs, ...modelInputs([model], io)]);
}

function stateOf(out: string): string {
  return `${out}.state`;
}

/** Texts by their names; by their paths where two have one name. */
async function readTexts(paths: readonly string[], { runtime, signal }: Io): Promise<{ name: string; text: string }[]> {
  const files = await Promise.all(
    paths.map(async (path) => ({ path, id: await hostOf(runtime, "read texts").identity(path) ?? path })),
  );
  refuseRepeated(files, { key: ({ id }) => id, name: ({ path }) => path, where: "text" });
  const names = paths.map(baseName);
  const nameOf = (i: number) => names.indexOf(names[i]) === names.lastIndexOf(names[i]) ? names[i] : paths[i];
  const read = (path: string) => runtime.readText(path, { signal });
  return await Promise.all(paths.map(async (path, i) => ({ name: nameOf(i), text: await read(path) })));
}

function parseKinds(text: string): typeof KINDS[number][] {
  const kinds = text.split(",").map((part) => {
    const kind = KINDS.find((each) => each === part.trim());
    if (kind) return kind;
    throw inputError(
      "calibrate.kinds",
      `Unknown kind of text "${part}": want some of ${KINDS.join(", ")}`,
      option("kinds"),
    );
  });
  refuseRepeated(kinds, { key: (kind) => kind, name: (kind) => kind, where: "kinds" });
  return kinds;
}

function baseName(path: string): string {
  return path.split(/[/\\]/).at(-1)!;
}

/** Layers in front, because that is what a stopped run goes on from. */
function progressOf(progress: Progress, plan: CalibrationPlan, layers: number) {
  const texts = plan.fit.length + plan.heldOut.length + plan.shifted.length;
  return (done: number, total: number) =>
    progress.update(`Calibrating, ${layers} layers × ${texts} texts`, done, total);
}

function withoutWeights({ info, coverage }: Calibration) {
  return { info, coverage };
}

/** What training gained, for people or as an object. */
function tellTrained(
  { info, before, after }: TrainedSoftTokens,
  file: { readonly out: string; readonly bytes: number; readonly ms: number; readonly model: string },
  { json, out: given }: CalibrateOptions,
  io: Io,
): void {
  const { out, bytes, ms, model } = file;
  if (json) return printJson(io, "calibrate", { out, bytes, ms, info, before, after });
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const row = (name: string, { loss, recall }: { readonly loss: number; readonly recall: number }) => [
    name,
    loss.toFixed(3),
    percent(recall),
  ];
  const rows = [
    row("words, untrained", before),
    row("soft tokens", after),
    row("the answer itself", {
      loss: 0,
      recall: after.best,
    }),
  ];
  const lines = [
    `${model}: ${info.trained}`,
    "on held-out texts: distance to what the answer looks at, and how much of that lies on the first 20 %",
    tableText(["what looks", "distance", "found"], rows),
    `wrote ${out}, ${formatBytes(bytes)}, in ${formatMs(ms)}; for --policy ${
      given === undefined ? "judge-q" : `"judge-q(file=${out})"`
    }`,
  ];
  io.out(`${lines.join("\n")}\n`);
}

/** Fit and worst case for people. */
function summary({ info, coverage }: Calibration, model: string): string {
  const flat = info.correlation.flat(), mean = flat.reduce((a, b) => a + b, 0) / flat.length;
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const rows = coverage.map((row) => [
    percent(row.coverage),
    row.margin.toFixed(2),
    percent(row.heldOut),
    percent(row.shifted),
  ]);
  const head = ["coverage promised", "margin q, nats", "held-out texts", "texts of another kind (logs)"];
  const { tokens, texts, towards } = info.calibration;
  return [
    `${model}: fitted${towards ? ` towards ${towards}` : ""} on ${tokens} tokens of ${texts.join(", ")}`,
    `correlation on held-out texts: mean ${mean.toFixed(3)}, worst head ${Math.min(...flat).toFixed(3)}, best ${
      Math.max(...flat).toFixed(3)
    }`,
    `worst case, by hidden states alone: in how many texts ln importance ≤ score + q for every unprotected entry`,
    tableText(head, rows),
  ].join("\n");
}
