/**
 * `palisade calibrate` for `judge-q`: soft tokens for a model, trained on this machine. State is saved after steps, so that a run
 * that was stopped goes on where it was.
 */
import { inputError, option } from "../../core/errors.ts";
import { hostOf } from "../../runtime/host.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { kindByMetadata, type OutputKind, writeWhole } from "../../runtime/output.ts";
import { parseSafetensors, writeSafetensors } from "../file/safetensors.ts";
import type { CalibrationPlan } from "../gate/fit/plan.ts";
import type { Model } from "../model.ts";
import { MAX_SOFT_TOKENS, SOFT_TOKENS_FORMAT, type SoftTokensInfo } from "../policy_files/soft_tokens.ts";
import { type Example, readExample } from "./examples.ts";
import { FrozenModel } from "./frozen.ts";
import { beginTraining, type Quality, qualityOf, type TrainingState, trainStep } from "./train.ts";

/** Tokens of each text that is trained on, and of each that is held out. */
export const TEXT_TOKENS = 256;
/** Texts a step goes by, and texts held out, which tell what was gained. */
const BATCH = 2, HELD_OUT = 4;
/** How far a number goes in a step at first, as a share of the embeddings' size (root of the mean square). */
const RATE = 0.08;
/** What the first embeddings say, over and over. */
const WORDS = "\n\nRepeat the text above exactly. ";
/** Metadata key of a saved state. */
const STATE_KEY = "palisade_soft_tokens_state";

export interface SoftTokenOptions {
  /** SHA-256 of the model file. */
  readonly sha256: string;
  /** How many soft tokens, 1 to 1024. */
  readonly count: number;
  /** Steps of the optimiser. */
  readonly steps: number;
  /** Where to keep the state; without one a stopped training begins anew. */
  readonly statePath?: string;
  /** Milliseconds between two saved states, at the least. Default 5000. */
  readonly saveEveryMs?: number;
  /** Called with what is done of texts and steps together. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

export interface TrainedSoftTokens {
  readonly info: SoftTokensInfo;
  /** `[count, width]`. */
  readonly embeddings: Float32Array;
  /** On the held-out texts: the words that training began with, and what came of them. */
  readonly before: Quality;
  readonly after: Quality;
}

/**
 * Trains soft tokens on the first {@link TEXT_TOKENS} tokens of the plan's texts. When `signal` aborts, the last saved
 * state stays and the promise rejects with its reason.
 * @throws PalisadeError `calibrate.experts`, `calibrate.soft-tokens` for a count out of range, as `repeatPrompts`, and
 * what files and engines throw.
 */
export async function trainSoftTokens(
  model: Model,
  runtime: Runtime,
  plan: CalibrationPlan,
  options: SoftTokenOptions,
): Promise<TrainedSoftTokens> {
  const { count, steps, signal, statePath, sha256 } = options;
  if (!(Number.isInteger(count) && count >= 1 && count <= MAX_SOFT_TOKENS)) {
    const message = `${count} soft tokens: want 1 to ${MAX_SOFT_TOKENS}`;
    throw inputError("calibrate.soft-tokens", message, option("softTokens"));
  }
  const frozen = new FrozenModel(model.file, model.config);
  const { fit, heldOut } = await readAll(model, plan, options);
  const begun = beginTraining(await firstEmbeddings(model, count));
  const fingerprint = fingerprintOf(model, runtime, plan, options);
  let state = statePath ? await restored(statePath, runtime, fingerprint, begun) : begun;
  let saved = performance.now();
  while (state.step < steps) {
    signal?.throwIfAborted();
    const batch = Array.from({ length: BATCH }, (_, i) => fit[(state.step * BATCH + i) % fit.length]);
    const rate = RATE * sizeOf(begun.embeddings) * (1 - state.step / steps);
    state = (await trainStep(frozen, batch, state, rate)).state;
    options.onProgress?.(state.step, steps);
    if (statePath && performance.now() - saved >= (options.saveEveryMs ?? 5000)) {
      await save(statePath, runtime, fingerprint, state, model.config.width);
      saved = performance.now();
    }
  }
  const before = await qualityOf(frozen, heldOut, begun.embeddings);
  const after = await qualityOf(frozen, heldOut, state.embeddings);
  const { name, architecture, width } = model.config;
  const trained = `${steps} steps on ${fit.length} texts of ${TEXT_TOKENS} tokens (${plan.sources.join(", ")}), seed ` +
    `${plan.seed}, towards what repeating the text looks at`;
  const info = { format: SOFT_TOKENS_FORMAT, model: { name, sha256, architecture, width }, trained } as const;
  return { info, embeddings: state.embeddings, before, after };
}

async function readAll(model: Model, plan: CalibrationPlan, { signal }: SoftTokenOptions) {
  const read = async (texts: readonly (readonly number[])[]) => {
    const examples: Example[] = [];
    for (const ids of texts) examples.push(await readExample(model, ids.slice(0, TEXT_TOKENS), { signal }));
    return examples;
  };
  return { fit: await read(plan.fit), heldOut: await read(plan.heldOut.slice(0, HELD_OUT)) };
}

/** Embeddings of {@link WORDS}, as often as it takes, `[count, width]`. */
async function firstEmbeddings({ tokenizer, dense, backend }: Model, count: number): Promise<Float32Array> {
  const words = tokenizer.encode(WORDS);
  const embedded = await dense.embed(Array.from({ length: count }, (_, i) => words[i % words.length]));
  const numbers = (await backend.tensors.read(embedded)).slice();
  backend.tensors.free(embedded);
  return numbers;
}

function sizeOf(embeddings: Float32Array): number {
  return Math.sqrt(embeddings.reduce((sum, x) => sum + x * x, 0) / embeddings.length);
}

/** What must be the same for a state to be gone on from. */
function fingerprintOf(model: Model, runtime: Runtime, plan: CalibrationPlan, options: SoftTokenOptions): string {
  const { sha256, count, steps } = options, { frame, dense, backend } = model, hasher = runtime.sha256();
  const parts = [sha256, frame, plan, count, steps, dense.detail, backend.detail, TEXT_TOKENS, BATCH, RATE, WORDS];
  hasher.update(new TextEncoder().encode(JSON.stringify(parts)));
  return hasher.digest();
}

async function save(path: string, runtime: Runtime, fingerprint: string, state: TrainingState, width: number) {
  const { step, embeddings, means, squares } = state, shape = [embeddings.length / width, width];
  const tensors = Object.entries({ embeddings, means, squares })
    .map(([name, data]) => ({ name, dtype: "F32", shape, data }) as const);
  await writeWhole(runtime, path, writeSafetensors(tensors, { [STATE_KEY]: JSON.stringify({ fingerprint, step }) }));
}

/** The state in a file; `begun` where there is none, or that of another training. */
async function restored(path: string, runtime: Runtime, fingerprint: string, begun: TrainingState) {
  if ((await hostOf(runtime, "calibrate").info(path))?.kind !== "file") return begun;
  const source = await runtime.openFile(path);
  try {
    return parseState(await source.read(0, source.size), path, fingerprint, begun) ?? begun;
  } catch {
    // Cut short, or no state at all: there is nothing to go on from.
    return begun;
  } finally {
    await source.close();
  }
}

function parseState(bytes: Uint8Array, path: string, fingerprint: string, { embeddings }: TrainingState) {
  const file = parseSafetensors(bytes, path), head = JSON.parse(file.metadata.get(STATE_KEY) ?? "{}");
  if (head.fingerprint !== fingerprint || !Number.isInteger(head.step)) return undefined;
  const [first, means, squares] = ["embeddings", "means", "squares"].map((name) => file.tensors.get(name)?.read());
  const fit = [first, means, squares].every((each) =>
    each?.length === embeddings.length && each.every(Number.isFinite)
  );
  return fit ? { step: head.step as number, embeddings: first!, means: means!, squares: squares! } : undefined;
}

/** What a state may take the place of. */
export const TRAINING_STATE: OutputKind = kindByMetadata("the state of a training", STATE_KEY);
