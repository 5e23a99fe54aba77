/** Using a snapshot in place of reading: as it is, or with the rest of the text read behind it. */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { Keep } from "../../core/select/budget.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { ContextState } from "../context.ts";
import { type DecodePlan, withPredictions } from "../decode/answer.ts";
import type { MaxCache } from "../decode/max_cache.ts";
import type { Model } from "../model.ts";
import { type AppendOptions, bothRefits, budgetBehind, readOn } from "../read/append.ts";
import { budgetKept } from "../read/layers.ts";
import type { Reading, ScoreFiles } from "../read/reading.ts";
import { repeatPrompts } from "../read/reconstruct.ts";
import { piecesOf } from "../read/replay.ts";
import type { ByteSource } from "./bytes.ts";
import { type Found, matchedTokens, type Wanted } from "./cache.ts";
import {
  filesBehind,
  firstDifference,
  firstWay,
  learnedAs,
  modelIdentity,
  readingIdentity,
  refuseDifference,
  wayBehind,
} from "./identity.ts";
import { type OpenWith, readHeader, readTokens, restoreState } from "./restore.ts";
import { recordOf } from "./tokens.ts";

/** What a reading would have been, and what it would have been told. */
export interface InsteadOf extends Pick<AppendOptions, "outputWeights" | "onLayer" | "signal"> {
  readonly files: ScoreFiles;
  readonly model: Model;
  readonly reading: Reading;
  /** How it decodes. */
  readonly plan: DecodePlan;
  readonly wanted: Wanted;
  readonly replaced: number;
  readonly maxCache?: MaxCache;
  readonly start: number;
}

/** What a budget leaves for what is new: undefined where it grows with the text. */
export function fixedBudget({ budget }: Reading, keep: Keep): number | undefined {
  return "tokens" in keep ? budget.perHead : undefined;
}

/** The context of a snapshot that was found. @throws PalisadeErrors of reading its sections. */
export async function reuse(found: Found, instead: InsteadOf): Promise<ContextState> {
  const { model, plan, wanted: { ids }, maxCache, signal, start } = instead;
  const frame = found.state.date === undefined ? model.frame : { ...model.frame, date: found.state.date };
  const { beyondTrained } = plan;
  const state = await restoreState(model, { ...found, frame }, { maxCache, beyondTrained, signal, start });
  const snapshot = { used: found.name };
  if (found.tokens === ids.length) return { ...state, snapshot };
  try {
    return { ...await goOn(state, found.tokens, instead), snapshot };
  } catch (error) {
    state.cache[Symbol.dispose]();
    throw error;
  }
}

/** Cuts a restored context to its first `tokens`, and reads the rest. */
async function goOn(old: ContextState, tokens: number, instead: InsteadOf): Promise<ContextState> {
  const { model, reading, wanted, plan, replaced, files } = instead,
    { ids, salt } = wanted,
    { policy, budget } = reading;
  const { cache } = old, rest = ids.slice(tokens), { way, files: before } = await old.facts();
  const predicted = tokens === old.tokens ? old.predicted : cut(cache, tokens, old.predicted);
  const restored = performance.now() - instead.start, { outputWeights, onLayer, signal } = instead;
  const read = await readOn(model, cache, rest, {
    ...{ policy, outputWeights, onLayer, signal, ...files, ...repeatedBehind(instead, tokens) },
    ...(reading.cacheType && { cacheType: reading.cacheType }),
    ...("refit" in reading && { refit: reading.refit }),
    ...budgetOf(reading, cache, rest.length, files),
    ...(wanted.predicted && { predicted }),
  });
  if (plan.positions === "rerotate") await cache.realign(model.config.ropes);
  const limited = reading.way === "threshold";
  return {
    ...old,
    ...{ policy, budget: limited ? budgetKept(budget, cache.globalEntries()) : budget },
    ...{ replaced, predicted: read.predicted, refit: bothRefits(old.refit, read.refit) },
    plan: wanted.predicted ? withPredictions(plan, files.gate!, read.predicted!) : plan,
    tokens: ids.length,
    reused: tokens,
    activationBytes: read.activationBytes,
    ms: { ...read.ms, restore: restored },
    keepCapped: reading.keepCapped ?? false,
    frameTokens: reading.frameTokens ?? 0,
    certificates: undefined,
    risk: limited ? old.risk : undefined,
    facts: () => {
      const files = filesBehind(before, wanted.facts.files);
      return Promise.resolve({ ...wanted.facts, files, way: wayBehind(way, tokens) });
    },
    read: recordOf(ids, salt),
    cost: { prefill: old.cost.prefill + read.ms.prefill, evict: old.cost.evict + read.ms.evict },
  };
}

/** What may stay of the rest: what the budget leaves; below a threshold nothing, whatever the budget. */
function budgetOf(
  { policy, budget, ...reading }: Reading,
  cache: RaggedCache,
  count: number,
  { worstCase }: ScoreFiles,
) {
  if (reading.way !== "threshold") return { budget: budgetBehind(budget, policy, cache, count) };
  const { model: { layers, kvHeads } } = budget, perLayer = count * kvHeads;
  const all = { ...budget, length: count, fraction: 1, perHead: count, perLayer, total: perLayer * layers, sinks: 0 };
  return {
    budget: { ...all, window: Math.min(budget.window, count) },
    threshold: worstCase?.threshold ?? reading.limit,
  };
}

/** The prompts that repeat the rest, and its pieces, where the policy has them repeated. */
function repeatedBehind({ model, reading, wanted: { ids }, plan }: InsteadOf, tokens: number) {
  const { needs, needs: { reconstruction } } = reading.policy, { beyondTrained } = plan;
  const refit = "refit" in reading ? reading.refit : undefined;
  const pieces = piecesOf(model, ids.slice(tokens), { needs, refit }, beyondTrained, tokens);
  return {
    ...(reconstruction && { prompts: repeatPrompts(model, ids, reconstruction, beyondTrained, tokens) }),
    ...(pieces && { pieces }),
  };
}

/** Drops what came from the token at `tokens` on; the scores of the rest. */
function cut(cache: RaggedCache, tokens: number, predicted: ContextState["predicted"]) {
  const { layers, kvHeads } = cache.shape;
  const lengths = Array.from({ length: layers }, (_, layer) =>
    Int32Array.from({ length: kvHeads }, (_, head) => {
      const positions = cache.positions(layer, head), end = positions.findIndex((position) => position >= tokens);
      return end === -1 ? positions.length : end;
    }));
  cache.trim({ position: cache.position - (cache.seen - tokens), lengths });
  return predicted?.map((list, i) => list.slice(0, lengths[Math.floor(i / kvHeads)][i % kvHeads]));
}

/** What a snapshot that is to be gone on with was made with, for options that are left open. */
export async function madeWith(source: ByteSource, opening: OpenWith) {
  const { identity, state } = await readHeader(source, opening);
  const [kind, amount] = identity.budget.split(" ");
  if (kind === "bytes") return { state, identity, keep: undefined, bytes: amount };
  const known = kind === "fraction" || kind === "tokens" || kind === "ratio";
  return { state, identity, ...(known && { keep: { [kind]: Number(amount) } as unknown as Keep }) };
}

/**
 * The snapshot of a text, or of its beginning, that a caller named.
 * @throws PalisadeError input as `Model.restore`, and `snapshot.tokens` when the text begins otherwise, or can't be read
 * behind it.
 */
export async function namedSnapshot(source: ByteSource, model: Model, wanted: Wanted): Promise<Found> {
  const opened = await readHeader(source, { runtime: model.runtime, secret: wanted.secret });
  const { identity, state, file } = opened;
  const asked = { ...await modelIdentity(model, wanted.salt, wanted.signal), ...readingIdentity(wanted.facts) };
  // One that is named may be gone on with by a larger budget, which what was kept leaves room in.
  const grows = growsFrom(identity.budget, asked.budget) && state.tokens < wanted.ids.length;
  // Whoever names one means it, whatever other texts taught meanwhile, or elsewhere.
  const files = wanted.grown ? learnedAs(identity.files, asked.files) : identity.files;
  const there = { ...identity, files, way: firstWay(identity.way), ...(grows && { budget: asked.budget }) };
  const difference = firstDifference(there, asked);
  if (difference) throw refuseDifference(file.name, difference);
  const read = await readTokens(opened, wanted.salt), match = matchedTokens(read, state.budget, wanted);
  if ("tokens" in match) return { ...opened, name: file.name, read, tokens: match.tokens };
  throw otherTokens(file.name, match.reason);
}

/** Whether a budget in tokens is followed by a larger one. */
function growsFrom(there: string, here: string): boolean {
  const [before, after] = [there, here].map((words) => Number(/^tokens (\d+)$/.exec(words)?.[1] ?? NaN));
  return after > before;
}

function otherTokens(name: string, reason: string): PalisadeError {
  return inputError("snapshot.tokens", `${name} can't be used for this text: ${reason}`, "tokens");
}
