/** What a policy asks to know of a layer that was read. */
import { observeRows } from "../../core/backend/observe_rows.ts";
import type { LayerRows } from "../../core/backend/interface.ts";
import type { Tensors } from "../../core/backend/tensor.ts";
import type { Observation } from "../../core/policy/policy.ts";
import type { Dense } from "../dense/dense.ts";
import { joinObservations } from "../joined.ts";
import type { LayerSeen } from "./layer_reader.ts";
import type { LayersOptions } from "./layers.ts";

/** Where the weights of a layer may be held already. */
export interface HeldWeights {
  readonly dense: Dense;
  readonly tensors: Tensors;
}

/**
 * What `policy` needs to know of a global layer whose rows are all there; `index`: which of the global layers it is. What
 * other layers that look at its rows have seen is in it (`model/joined.ts`).
 */
export async function observeLayer(
  from: { readonly rows: LayerRows; readonly tensors: Tensors },
  at: { readonly layer: number; readonly index: number },
  seen: LayerSeen,
  options: Pick<LayersOptions, "policy" | "budget" | "outputWeights">,
  heldOn?: HeldWeights,
): Promise<Observation> {
  const others = (seen.readers ?? []).map(({ layer, seen }) => [{ ...at, layer }, seen] as const);
  const all = [[at, seen] as const, ...others].map(([at, seen]) => observeOne(from, at, seen, options, heldOn));
  return joinObservations(await Promise.all(all));
}

/** By the queries of one layer. */
async function observeOne(
  { rows, tensors }: { readonly rows: LayerRows; readonly tensors: Tensors },
  { layer, index }: { readonly layer: number; readonly index: number },
  seen: LayerSeen,
  { policy: { needs }, budget, outputWeights }: Pick<LayersOptions, "policy" | "budget" | "outputWeights">,
  heldOn?: HeldWeights,
): Promise<Observation> {
  const { model: shape, length, window } = budget;
  // On a device they are there already.
  const held = needs.valueNorms && await heldOn?.dense.outputWeights?.(layer);
  const wo = held || needs.valueNorms && await outputWeights(layer);
  // Asked for together, so that a device is waited for once.
  const [measured, valueNorms] = await Promise.all([
    needs.window || needs.rows ? observeRows(tensors, rows, seen.windowQueries, window, needs) : {},
    wo && rows.valueNorms(wo, wo.length / (shape.heads * shape.headDim), needs.valueNorms),
  ]).finally(() => {
    if (held) heldOn!.tensors.free(held);
  });
  return {
    layer: index,
    shape: rows.shape,
    length,
    window,
    columnSum: seen.columnSum,
    columnMax: seen.columnMax,
    queryMean: seen.queryMean,
    queryCovariance: seen.queryCovariance,
    pairs: seen.pairs,
    pairMean: seen.pairMean,
    pairRest: seen.pairRest,
    reconstruction: seen.reconstruction,
    gate: seen.gate,
    selfGate: seen.selfGate,
    softTokens: seen.softTokens,
    moved: seen.moved,
    valueNorms,
    ...measured,
  };
}
