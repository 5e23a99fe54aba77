/** `palisade calibrate`: fits a gate for a model on this machine and writes it where `gate` looks for it. */
import { inputError } from "../../core/errors.ts";
import { calibrate as fit, type Calibration } from "../../model/gate/fit/calibrate.ts";
import { type CalibrationPlan, planCalibration } from "../../model/gate/fit/plan.ts";
import { KINDS } from "../../model/gate/fit/text.ts";
import { writeGate } from "../../model/gate/file.ts";
import { GATE_SUFFIX, gateFolder, sha256Of } from "../../model/gate/find.ts";
import { loadModel } from "../../model/model.ts";
import { autoThreads } from "../../model/threads.ts";
import type { EngineOptions } from "./ask.ts";
import { formatBytes, formatMs } from "../print/format.ts";
import { EXIT, type Io } from "../io.ts";
import { obtainModel } from "../obtain.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { tableText } from "../print/table.ts";

export interface CalibrateCommand extends EngineOptions {
  /** The user's own texts. */
  readonly text?: readonly string[];
  readonly tokens: number;
  readonly seed: number;
  /** Kinds of built-in text, separated by commas. */
  readonly kinds: string;
  readonly out?: string;
  readonly json?: boolean;
}

/** Runs the command; returns the exit code. A stopped run goes on where it was when it is started again. */
export async function calibrate(command: CalibrateCommand, io: Io): Promise<number> {
  const host = io.runtime.host!;
  const kinds = parseKinds(command.kinds);
  const texts = await Promise.all(
    (command.text ?? []).map(async (name) => ({ name: baseName(name), text: await io.runtime.readText(name) })),
  );
  const progress = createProgress(io.interactive && !command.quiet), start = performance.now();
  try {
    const path = await obtainModel(command.model, io, progress, command);
    const out = command.out ??
      host.join(gateFolder(io.runtime), `${baseName(path).replace(/\.gguf$/, "")}${GATE_SUFFIX}`);
    if (command.out === undefined) await host.makeFolder(gateFolder(io.runtime));
    await checkWritable(out, io);
    const sha256 = await sha256Of(path, io.runtime);
    await using model = await loadModel(path, io.runtime, {
      backend: command.backend,
      dense: command.dense,
      // As many for the dense layers as for the kernels: minutes of work that nobody talks to meanwhile.
      threads: command.threads === "auto" ? autoThreads(io.runtime) : command.threads,
      // Many rows at a time: float32 takes half the time of quantised weights.
      precision: "float32",
      signal: io.signal,
      onProgress: (done, total) => progress.update("Starting the model", done, total),
    });
    const { tokens, seed } = command;
    const plan = await planCalibration(model, io.runtime, { tokens, seed, kinds, texts });
    const statePath = `${out}.state`;
    const result = await fit(model, io.runtime, plan, {
      sha256,
      statePath,
      signal: io.signal,
      onProgress: progressOf(progress, plan, model.config.layers),
    });
    const bytes = writeGate(result.info, result.gate);
    await writeFile(out, bytes, io);
    await host.remove(statePath);
    progress.clear();
    const ms = performance.now() - start;
    if (command.json) {
      io.out(`${JSON.stringify({ out, bytes: bytes.length, ms, ...withoutWeights(result) }, null, 2)}\n`);
    } else io.out(`${summary(result)}\nwrote ${out}, ${formatBytes(bytes.length)}, in ${formatMs(ms)}\n`);
    return EXIT.ok;
  } finally {
    progress.clear();
  }
}

function parseKinds(text: string): typeof KINDS[number][] {
  return text.split(",").map((part) => {
    const kind = KINDS.find((each) => each === part.trim());
    if (kind) return kind;
    throw inputError("calibrate.kinds", `Unknown kind of text "${part}": want some of ${KINDS.join(", ")}`, "--kinds");
  });
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

/** Told before the hours of work, not after. */
async function checkWritable(path: string, { runtime }: Io): Promise<void> {
  const host = runtime.host!, part = `${path}.part`;
  await (await host.create(part, { named: path })).close();
  await host.remove(part);
}

/** A whole file or none. */
async function writeFile(path: string, bytes: Uint8Array, { runtime }: Io): Promise<void> {
  const host = runtime.host!, part = `${path}.part`;
  const sink = await host.create(part, { named: path });
  try {
    await sink.write(bytes);
    await sink.sync();
  } finally {
    await sink.close();
  }
  await host.rename(part, path);
}

function withoutWeights({ info, coverage }: Calibration) {
  return { info, coverage };
}

/** Fit and worst case for people. */
function summary({ info, coverage }: Calibration): string {
  const flat = info.correlation.flat(), mean = flat.reduce((a, b) => a + b, 0) / flat.length;
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const rows = coverage.map((row) => [
    percent(row.coverage),
    row.margin.toFixed(2),
    percent(row.heldOut),
    percent(row.shifted),
  ]);
  const head = ["coverage promised", "margin q, nats", "held-out texts", "texts of another kind (logs)"];
  const { tokens, texts } = info.calibration;
  return [
    `${info.model.name}: fitted on ${tokens} tokens of ${texts.join(", ")}`,
    `correlation on held-out texts: mean ${mean.toFixed(3)}, worst head ${Math.min(...flat).toFixed(3)}, best ${
      Math.max(...flat).toFixed(3)
    }`,
    `worst case: in how many texts ln importance ≤ score + q for every unprotected entry`,
    tableText(head, rows),
  ].join("\n");
}
