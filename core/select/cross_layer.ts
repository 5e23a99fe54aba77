/** What decides over layers while they arrive: layers in any order, each once; entries that can't win are dropped. */
import { CascadeSelection } from "./cascade.ts";
import { JointSelection } from "./joint.ts";
import type { Budget, LayerScores, Policy } from "../policy/policy.ts";
import type { LayerChange } from "./candidates.ts";

/** Decides where layers compete or share; see the head of the file. */
export interface CrossLayerSelection {
  /** Takes one layer's scores, `[kvHeads, L]`; returns the layers that lose entries now, in ascending order. */
  add(layer: number, scores: LayerScores): LayerChange[];
  /** Positions that are still in, per KV head, ascending. After the last layer: the final kept sets. */
  kept(layer: number): Int32Array[];
  /** Bytes held for entries that are still in. */
  readonly scoreBytes: number;
}

/** For policies whose layers compete or share; `undefined` for those that decide each layer alone (`layerSelections`). */
export function crossLayerSelection(
  { allocate: { kind } }: Pick<Policy, "allocate">,
  budget: Budget,
): CrossLayerSelection | undefined {
  if (kind === "model") return new JointSelection(budget);
  return kind === "cascade" ? new CascadeSelection(budget) : undefined;
}
