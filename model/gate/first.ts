/**
 * The first gate of a model that has none: fitted on built-in texts once, before the first long text is read, and kept
 * for all readings to come. As `palisade calibrate` fits one, on a fifth of its tokens and without texts held out for
 * margins, so in a fraction of its time: as long as it takes to read twice as many tokens. It keeps more answers than a
 * gate fitted on the text at hand (`self-gate`), which says little of numbers, names and tables where those are rare
 * (bench/results/first-gate.md).
 */
import { hostOf } from "../../runtime/host.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { writeWhole } from "../../runtime/output.ts";
import type { GgufFile } from "../file/gguf/reader.ts";
import type { Model } from "../model.ts";
import { gateIfAny } from "../read/policy_inputs.ts";
import { sharedWork } from "../shared_work.ts";
import { type Gate, parseGate, writeGate } from "./file.ts";
import { FIRST_SUFFIX, gateFolder, ownGatePath } from "./find.ts";
import { calibrate } from "./fit/calibrate.ts";
import { planCalibration } from "./fit/plan.ts";
import { type NotKept, unlessRefused } from "./kept.ts";

/** Tokens that it is fitted on. Measured: bench/results/first-gate.md. */
export const FIRST_TOKENS = 2048;
/** Shorter texts are not worth the wait: reading them takes less. */
export const LEAST_TEXT = 2048;
const SEED = 1;

/** What a first gate took. */
export type FirstGateFigures =
  & {
    /** Tokens that it was fitted on. */
    readonly tokens: number;
    readonly ms: number;
  }
  & ({ readonly stored: true } | NotKept);

/** A model's first gate; with figures where it was fitted for this text. */
export interface FirstGate {
  readonly gate: Gate;
  readonly fitted?: FirstGateFigures;
}

/** How one is fitted. */
export interface FirstGateOptions {
  /** Whether anything may be left for readings to come; else none is fitted. */
  readonly learn?: boolean;
  /** Called after every text of every layer. */
  readonly onFirstGate?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** Where no file can be kept, and for those that ask for one while it is fitted. */
const fittedHere = new WeakMap<GgufFile, ReturnType<typeof fitterOf>>();

/**
 * Whether a text of `tokens` tokens is to be read by the model's {@link firstGate}: not where it has another, where nothing
 * may be left, where the text is short, nor for layers that share rows.
 * @throws PalisadeError `gate.*` for a gate that is there and can't be used; the signal's reason.
 */
export async function wantsFirstGate(
  model: Pick<Model, "runtime" | "config" | "gate">,
  tokens: number,
  { learn, signal }: FirstGateOptions,
): Promise<boolean> {
  const { runtime, config } = model;
  if (!learn || !runtime.host || tokens < LEAST_TEXT || config.sources) return false;
  return await gateIfAny(model, signal) === undefined;
}

/**
 * The first gate of a model that has no other.
 * @throws PalisadeError what files and engines throw; the signal's reason.
 */
export async function firstGate(model: Model, options: FirstGateOptions = {}): Promise<FirstGate> {
  const { file } = model, known = fittedHere.get(file);
  if (known) return { gate: (await known(options)).gate };
  const fit = fitterOf(model);
  fittedHere.set(file, fit);
  return await fit(options);
}

function fitterOf(model: Model) {
  return sharedWork((options: FirstGateOptions) => fitted(model, options));
}

async function fitted(model: Model, { onFirstGate, signal }: FirstGateOptions) {
  const { runtime } = model, start = performance.now();
  const plan = await planCalibration(model, runtime, { tokens: FIRST_TOKENS, seed: SEED, heldOut: false, signal });
  const sha256 = await model.identity({ signal });
  const { info, gate } = await calibrate(model, runtime, plan, { sha256, onProgress: onFirstGate, signal });
  const bytes = writeGate(info, gate), path = ownGatePath(runtime, sha256, FIRST_SUFFIX);
  const kept = await unlessRefused(() => keep(runtime, path, bytes));
  const figures = { tokens: info.calibration.tokens, ms: performance.now() - start, ...kept };
  // As the next reading will find it: a file rounds.
  return { gate: parseGate(bytes, path), fitted: figures };
}

async function keep(runtime: Runtime, path: string, bytes: Uint8Array) {
  await hostOf(runtime, "keep a gate").makeFolder(gateFolder(runtime));
  await writeWhole(runtime, path, bytes);
  return { stored: true } as const;
}
