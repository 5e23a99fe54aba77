/**
 * What gates that fitted themselves while reading (`model/read/replay.ts`) leave behind: one gate per model, in the folder
 * of the user's own gates, found by the model file's SHA-256. The next text begins with it.
 *
 * Nothing of a text can be read from it. It holds weights, never sums: XᵀX would say which tokens were in a text, and how
 * often (docs/decisions/self-gate.md). And a text changes it only by at least {@link LEAST_LEARNED} of its tokens.
 *
 * Each state has a random name, and says which ones it grew from. So a snapshot knows what its reading is a part of
 * (docs/snapshots.md). No hash of a state is kept: by one, a text could be tried that was read long ago.
 */
import { PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { writeWhole } from "../../runtime/output.ts";
import type { ModelConfig } from "../config.ts";
import { checkGate, type Gate, GATE_FORMAT, type GateInfo, writeGate } from "./file.ts";
import { gateFolder, loadGate, ownGatePath } from "./find.ts";
import { FLOOR, SKIPPED } from "./fit/layer.ts";
import { type NotKept, notKept, unlessRefused } from "./kept.ts";
import type { GateWeights } from "./scorer.ts";

/** Fewer tokens of a text than this never change what is kept. */
export const LEAST_LEARNED = 1000;
/** Not the suffix of gates: those that `gate` looks for are fitted on texts that were chosen for it. */
const SUFFIX = ".learned.safetensors";
const TEXTS = "texts that were read";
/** States that one is known to have grown from; of those before, snapshots are read anew. */
const MOST_GROWN = 1024;

/** What is looked for by. */
export interface LearnedSubject {
  readonly config: ModelConfig;
  readonly runtime: Runtime;
  /** SHA-256 of the model file, hexadecimal. */
  identity(): Promise<string>;
}

/** Where what is learned of a model is kept. */
export function learnedPath(runtime: Runtime, sha256: string): string {
  return ownGatePath(runtime, sha256, SUFFIX);
}

/** What earlier texts left; undefined where there is nothing, or nothing that can be used. In a browser there is none. */
export async function findLearned(model: LearnedSubject): Promise<Gate | undefined> {
  const { runtime, config } = model;
  if (!runtime.host) return undefined;
  const sha256 = await model.identity();
  try {
    const gate = await loadGate(learnedPath(runtime, sha256), runtime);
    checkGate(gate, config, sha256);
    return gate;
  } catch (error) {
    if (error instanceof PalisadeError) return undefined;
    throw error;
  }
}

/** What became of a fitted gate; `as`: the name of what is kept now. */
export type Learning = { readonly stored: true; readonly as: string } | NotKept;

/** A gate that was fitted on `tokens` tokens of a text, begun with one of `known` tokens. */
export interface NewlyFitted {
  readonly gate: GateWeights;
  readonly tokens: number;
  readonly known: number;
  /** What that one had grown from, where texts had left it. */
  readonly grown?: readonly string[];
}

/**
 * Keeps a gate for texts to come; not where too few tokens are behind it, nor in place of one that it didn't begin with. A
 * disk that can't be written to costs the gate, not the reading.
 */
export async function learn(model: LearnedSubject, fitted: NewlyFitted): Promise<Learning> {
  const { runtime } = model, { host } = runtime;
  if (fitted.tokens < LEAST_LEARNED) return notKept(`it was fitted on fewer than ${LEAST_LEARNED} tokens of the text`);
  if (!host) return notKept("there are no files here");
  const sha256 = await model.identity(), path = learnedPath(runtime, sha256);
  return await unlessRefused(async () => {
    await host.makeFolder(gateFolder(runtime));
    await using _ = await host.lock(path);
    const now = await findLearned(model);
    if (now && !isBegunWith(now, fitted)) return notKept("it began with something else than is kept now");
    const as = crypto.randomUUID(), grown = [...(now?.info.calibration.grown ?? []), as].slice(-MOST_GROWN);
    const info = infoOf(model.config, sha256, { ...fitted, grown });
    await writeWhole(runtime, path, writeGate(info, fitted.gate), { secret: true });
    return { stored: true, as };
  });
}

function isBegunWith({ info: { calibration: { tokens, grown } } }: Gate, fitted: NewlyFitted): boolean {
  return tokens === fitted.known && grown?.at(-1) === fitted.grown?.at(-1);
}

function infoOf(
  { name, architecture, layers, kvHeads, width }: ModelConfig,
  sha256: string,
  { tokens, known, grown }: NewlyFitted,
): GateInfo {
  return {
    format: GATE_FORMAT,
    model: { name, sha256, architecture, layers, kvHeads, width },
    calibration: {
      texts: [TEXTS],
      seed: 0,
      tokens: tokens + known,
      textTokens: tokens,
      floor: FLOOR,
      skipped: SKIPPED,
      grown,
    },
    ridge: new Array<number>(layers).fill(0),
    correlation: Array.from({ length: layers }, () => new Array<number>(kvHeads).fill(0)),
    conformal: { textTokens: 0, window: 0, scores: [] },
  };
}
