/**
 * The policy of a context for which none is named, and whether what it keeps is refitted, chosen by measurement
 * (bench/results/answers.md, refit.md, docs/gates.md). The gate wherever one is fitted, together with the risk seen by the
 * last queries: the answers of kvzip for the price of one small product per token; for a long text one is fitted where
 * there is none (`gate/first.ts`). Else `self-gate`, which has a part of the text repeated right behind itself, for a
 * bounded share of the reading, whatever room is left. Where layers share rows, which it can't read, `kvzip`, a second
 * reading, in chunks that have room behind the context. Where nothing can be repeated, `layer-defensive`, the best of
 * those that guess from the last queries.
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

/** By the chunks that are repeated, longest first. Each costs some thirty tokens of instruction. */
const KVZIP = [2048, 1024, 512, 256].map((chunk) => `kvzip(chunk=${chunk})`);
const SELF_GATE = "self-gate";

export interface DefaultOptions {
  /** Instead of the gate that belongs to the model. */
  readonly gate?: Gate;
  /** One will be fitted before the context is read (`gate/first.ts`). */
  readonly gateToCome?: boolean;
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
  { gate, gateToCome, rolling, beyondTrained, signal }: DefaultOptions,
): Promise<Policy> {
  if (gate || gateToCome || await gateIfAny(model, signal)) {
    return resolvePolicy(rolling ? "gate(read=stream)" : "gate(combine=risk)");
  }
  const policy = rolling ? undefined : policyWithRoom(model, ids, [SELF_GATE, ...KVZIP], beyondTrained);
  return policy ?? resolvePolicy("layer-defensive");
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
  return policyWithRoom(model, ids, [...KVZIP, SELF_GATE], beyondTrained);
}

/** The first of the policies that has room for what it repeats. */
function policyWithRoom(
  model: Pick<Model, "config" | "tokenizer" | "frame">,
  ids: readonly number[],
  policies: readonly string[],
  beyondTrained?: boolean,
): Policy | undefined {
  const readable = policies.filter((text) => !model.config.sources || text !== SELF_GATE);
  return readable.map((text) => resolvePolicy(text)).find(({ needs }) =>
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
