/**
 * From what was observed of a layer to what stays of it: score, select, kept entries. The one way for reading, sweeps and
 * searches; what is selected with is the caller's (a backend's `select`).
 *
 * Most policies decide each layer alone, when it comes. Where layers compete or share, entries that can't win any more
 * leave at once, and the last layer settles the rest (`joint.ts`, `cascade.ts`).
 */
import type { Budget, LayerScores, Observation, Policy } from "../policy/policy.ts";
import { layerSelections } from "./allocate.ts";
import type { LayerChange } from "./candidates.ts";
import { type CrossLayerSelection, crossLayerSelection } from "./cross_layer.ts";
import type { SelectionInput } from "./select.ts";
import { keepAbove, thresholdOf } from "./threshold.ts";

/** A backend's `select`, or one like it. */
export interface Selector {
  select(input: SelectionInput): Promise<Int32Array[]>;
}

/** What decides. */
export interface EvictionSettings {
  readonly policy: Policy;
  readonly budget: Budget;
  /** Evicts only what scores below this, whatever the budget, instead of by the policy's own. */
  readonly threshold?: number;
}

/** True when nothing is evicted, so that nothing need be observed. */
export function keepsAll(settings: EvictionSettings): boolean {
  const { policy, budget } = settings;
  return policy.allocate.kind === "all" || (thresholdOf(settings) === undefined && budget.perHead >= budget.length);
}

export class Eviction {
  readonly #settings: EvictionSettings;
  readonly #selector: Selector;
  readonly #crossLayer?: CrossLayerSelection;

  constructor(settings: EvictionSettings, selector: Selector) {
    this.#settings = settings;
    this.#selector = selector;
    if (thresholdOf(settings) === undefined) this.#crossLayer = crossLayerSelection(settings.policy, settings.budget);
  }

  /** Whether layers compete or share: what is kept of one is final after the last ({@link kept}). */
  get crossLayer(): boolean {
    return this.#crossLayer !== undefined;
  }

  /** Bytes held for entries that still compete. */
  get scoreBytes(): number {
    return this.#crossLayer?.scoreBytes ?? 0;
  }

  /** Takes one layer, each once, and returns the layers that lose entries now, in ascending order. */
  async add(observation: Observation): Promise<LayerChange[]> {
    const { policy, budget } = this.#settings, { layer } = observation;
    const scores = policy.score(observation, budget);
    if (this.#crossLayer) return this.#crossLayer.add(layer, scores);
    return [{ layer, kept: await this.#alone(scores) }];
  }

  /**
   * Where layers compete: positions of a layer that are still in, per KV head, ascending.
   * @throws RangeError where they don't, since nothing is remembered then.
   */
  kept(layer: number): Int32Array[] {
    if (!this.#crossLayer) throw new RangeError(`Cannot give layer ${layer}: its kept entries were given when it came`);
    return this.#crossLayer.kept(layer);
  }

  /** Inside one layer: by the threshold, every head for itself, or the heads against each other. */
  async #alone(scores: LayerScores): Promise<Int32Array[]> {
    const { policy, budget } = this.#settings, threshold = thresholdOf(this.#settings);
    if (threshold !== undefined) return keepAbove(scores, budget.model.kvHeads, budget.length, threshold);
    const kept: Int32Array[] = [];
    for (const selection of layerSelections(policy, budget, scores)) {
      kept.push(...await this.#selector.select(selection));
    }
    return kept;
  }
}

/** Kept positions of all layers, `[layer][kvHead]`, of observations given in order of the layers. */
export async function keptOfAll(
  settings: EvictionSettings,
  observations: readonly Observation[],
  selector: Selector,
): Promise<Int32Array[][]> {
  const eviction = new Eviction(settings, selector);
  const alone: Int32Array[][] = [];
  for (const observation of observations) {
    const changes = await eviction.add(observation);
    if (!eviction.crossLayer) alone.push(changes[0].kept);
  }
  return eviction.crossLayer ? observations.map(({ layer }) => eviction.kept(layer)) : alone;
}
