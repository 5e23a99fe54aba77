/**
 * The policy of a context for which none is named, chosen by measurement (bench/results/answers.md, docs/gates.md): the
 * gate wherever one is fitted, together with the risk seen by the last queries, because it keeps nearly as many answers
 * as kvzip for the price of one small product per token; else kvzip, which needs no preparation but a second prefill;
 * where not even short chunks of kvzip's fit behind the context, `self-gate`, whose chunks are repeated right behind
 * themselves, and which keeps fewer answers than kvzip (bench/results/self-gate.md), but far more than those that guess
 * from the last queries; where even that has no room, `layer-defensive`, the best of these. What the gates and kvzip keep
 * is refitted.
 */
import { PalisadeError } from "../core/errors.ts";
import type { Policy } from "../core/policy/policy.ts";
import { resolvePolicy } from "../core/policy/registry.ts";
import type { Refit } from "../core/refit/refit.ts";
import type { Gate } from "./gate/file.ts";
import type { Model } from "./model.ts";
import { gateIfAny } from "./read/policy_inputs.ts";
import { repeatPrompts } from "./read/reconstruct.ts";
import { piecesOf, replayPieces } from "./read/replay.ts";

/** Chunks that kvzip repeats, longest first. Each costs some thirty tokens of instruction. */
const CHUNKS = [2048, 1024, 512, 256] as const;

export interface DefaultOptions {
  /** Instead of the gate that belongs to the model. */
  readonly gate?: Gate;
  /** The context is longer than the trained length and is read chunk by chunk, positions closing up. */
  readonly rolling: boolean;
  readonly beyondTrained?: boolean;
  readonly signal?: AbortSignal;
}

/**
 * The policy for the context `ids` of `model` when the caller leaves it open.
 * @throws PalisadeError `gate.*` for a gate that is there and can't be used.
 */
export async function defaultPolicy(
  model: Pick<Model, "config" | "tokenizer" | "frame" | "gate">,
  ids: readonly number[],
  { gate, rolling, beyondTrained, signal }: DefaultOptions,
): Promise<Policy> {
  if (gate || await gateIfAny(model, signal)) {
    return resolvePolicy(rolling ? "gate(read=stream)" : "gate(combine=risk)");
  }
  return (rolling ? undefined : replayPolicy(model, ids, beyondTrained)) ?? resolvePolicy("layer-defensive");
}

/** What else of {@link ContextOptions} decides whether the default refits. */
export interface DefaultRefitOptions {
  readonly beyondTrained?: boolean;
  readonly risk?: unknown;
  readonly explain?: boolean;
  readonly merge?: string;
  readonly keyChannels?: unknown;
}

/**
 * What is refitted behind a policy that nobody named, for the context `ids`, when that is left open too: all of what
 * queries that repeat the context, or pieces of it, can be asked of (bench/results/refit.md), where the backend and the
 * model's layers allow it and nothing was asked for that a refit takes away.
 */
export function defaultRefit(
  { needs, evicts }: Pick<Policy, "needs" | "evicts">,
  model: Pick<Model, "backend" | "config" | "tokenizer" | "frame">,
  ids: readonly number[],
  { risk, explain, merge = "none", keyChannels, beyondTrained }: DefaultRefitOptions,
): Refit {
  const { backend, config } = model, fitted = needs.reconstruction ?? needs.selfGate ?? needs.gate;
  if (!fitted || evicts !== "late" || !backend.refits || config.sources) return "none";
  if (risk !== undefined || explain || merge !== "none" || keyChannels !== undefined) return "none";
  return needs.reconstruction || piecesOf(model, ids, { needs, refit: "both" }, beyondTrained) ? "both" : "none";
}

/** The policy that has most of the context repeated at once, of those that have room to; undefined where none has. */
export function replayPolicy(
  model: Pick<Model, "config" | "tokenizer" | "frame">,
  ids: readonly number[],
  beyondTrained?: boolean,
): Policy | undefined {
  const { sources } = model.config;
  const repeating = [...CHUNKS.map((chunk) => `kvzip(chunk=${chunk})`), ...sources ? [] : ["self-gate"]];
  return repeating.map((text) => resolvePolicy(text)).find(({ needs }) =>
    !refused(() => {
      if (needs.reconstruction) repeatPrompts(model, ids, needs.reconstruction, beyondTrained);
      if (needs.selfGate) replayPieces(model, ids, needs.selfGate, beyondTrained);
    })
  );
}

function refused(attempt: () => unknown): boolean {
  try {
    attempt();
    return false;
  } catch (error) {
    if (error instanceof PalisadeError && error.code === "context.too-long") return true;
    throw error;
  }
}
