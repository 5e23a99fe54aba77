/** Using a snapshot in place of reading: as it is, or with the rest of the text read behind it. */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import { type Keep, parseKeep } from "../../core/select/budget.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { ContextState } from "../context.ts";
import { type DecodePlan, withPredictions } from "../decode/answer.ts";
import type { MaxCache } from "../decode/max_cache.ts";
import type { Model } from "../model.ts";
import { type AppendOptions, budgetBehind, cannotGoOn, readOn } from "../read/append.ts";
import type { Reading } from "../read/reading.ts";
import type { ByteSource } from "./bytes.ts";
import { type Found, matchedTokens, type Wanted } from "./cache.ts";
import { firstDifference, firstWay, modelIdentity, readingIdentity, refuseDifference, wayBehind } from "./identity.ts";
import { type OpenWith, readHeader, readTokens, restoreState } from "./restore.ts";
import { recordOf } from "./tokens.ts";

/** What a reading would have been, and what it would have been told. */
export interface InsteadOf extends Pick<AppendOptions, "gate" | "outputWeights" | "onLayer" | "signal"> {
  readonly model: Model;
  readonly reading: Reading;
  /** How it decodes. */
  readonly plan: DecodePlan;
  readonly wanted: Wanted;
  readonly replaced: number;
  readonly maxCache?: MaxCache;
  readonly start: number;
}

/** Why a text that is read like this can't be read behind a snapshot of its beginning. */
export function cannotGoOnReading({ policy, budget, way, ...reading }: Reading, model: Model, keep: Keep | string) {
  if (way !== "layers") return `a text that is read in the way of ${way} is read whole`;
  if ("explain" in reading && reading.explain) return "certificates are of a whole reading";
  if ("refit" in reading && reading.refit) return "a refit goes by queries that have seen all of the text";
  if (policy.stages?.merge) return "what is merged can't be told apart again";
  if (policy.needs.foresight) return "queries read by what is known once all of the text is there";
  if (policy.stages?.keyChannels) return "nothing is read behind keys that have lost channels";
  const asked = typeof keep === "string" ? parseKeep(keep) : keep;
  if ("tokens" in asked && budget.perHead < budget.length) return "a budget in tokens leaves nothing for what is new";
  return cannotGoOn(policy, model.config);
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
  const { model, reading: { policy, budget, ...reading }, wanted, plan, replaced } = instead, { ids, salt } = wanted;
  const { cache } = old, rest = ids.slice(tokens), { way } = await old.facts();
  const predicted = cut(cache, tokens, old.predicted), restored = performance.now() - instead.start;
  const behind = budgetBehind(budget, policy, cache, rest.length);
  const { gate, outputWeights, onLayer, signal } = instead;
  const read = await readOn(model, cache, rest, {
    ...{ policy, budget: behind, gate, outputWeights, onLayer, signal },
    ...(wanted.predicted && { predicted }),
  });
  if (plan.positions === "rerotate") await cache.realign(model.config.ropes);
  return {
    ...old,
    ...{ policy, budget, replaced, predicted: read.predicted },
    plan: wanted.predicted ? withPredictions(plan, gate!, read.predicted!) : plan,
    tokens: ids.length,
    reused: tokens,
    activationBytes: read.activationBytes,
    ms: { ...read.ms, restore: restored },
    keepCapped: reading.keepCapped ?? false,
    frameTokens: reading.frameTokens ?? 0,
    certificates: undefined,
    risk: undefined,
    facts: () => Promise.resolve({ ...wanted.facts, way: wayBehind(way, tokens) }),
    read: recordOf(ids, salt),
    cost: { prefill: old.cost.prefill + read.ms.prefill, evict: old.cost.evict + read.ms.evict },
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
  const difference = firstDifference({ ...identity, way: firstWay(identity.way) }, asked);
  if (difference) throw refuseDifference(file.name, difference);
  const read = await readTokens(opened, wanted.salt), match = matchedTokens(read, state.budget.window, wanted);
  if ("tokens" in match) return { ...opened, name: file.name, read, tokens: match.tokens };
  throw otherTokens(file.name, match.reason);
}

function otherTokens(name: string, reason: string): PalisadeError {
  return inputError("snapshot.tokens", `${name} can't be used for this text: ${reason}`, "tokens");
}
