/**
 * A policy's selection, and a wider one by the same scores from which another of the same size may be chosen: what a
 * pursuit (`core/refit/pursuit.ts`) chooses among. Until it has chosen, the wider one stays.
 */
import { inputError, option, say } from "../errors.ts";
import type { Budget, LayerScores, Observation, Policy } from "../policy/policy.ts";
import type { LayerChange } from "./candidates.ts";
import { Eviction, type EvictionSettings, type Selector } from "./eviction.ts";

/** Candidates for every entry that stays. */
export const WIDE = 4;

/** Positions of one head, ascending. */
export interface WideHead {
  readonly wide: Int32Array;
  /** Those that the policy keeps, and of them the protected ones. */
  readonly policy: Int32Array;
  readonly protectedEntries: Int32Array;
}

/**
 * Refuses policies of which no wider selection can be had.
 * @throws PalisadeError input `refit.pursuit`.
 */
export function checkPursuit({ name, allocate, threshold }: Pick<Policy, "name" | "allocate" | "threshold">): void {
  if (threshold === undefined && allocate.kind !== "cascade") return;
  const why = threshold === undefined
    ? "its layers give their shares on before they are done"
    : "it keeps all that scores enough, whatever the number";
  const message =
    say`A pursuit chooses as many entries as the policy keeps, among four times as many; ${name} has no ` +
    `such selection, since ${why}: take another policy, or both`;
  throw inputError("refit.pursuit", message, option("refit"));
}

export class WideEviction {
  readonly #policy: Eviction;
  readonly #wide: Eviction;
  readonly #budget: Budget;
  #scores?: LayerScores;
  readonly #protected = new Map<number, Int32Array[]>();
  /** Where no layer waits for another. */
  readonly #alone = new Map<number, readonly [wide: readonly Int32Array[], policy: readonly Int32Array[]]>();

  /** @throws PalisadeError as {@link checkPursuit}. */
  constructor({ policy, budget }: EvictionSettings, selector: Selector) {
    checkPursuit(policy);
    this.#budget = budget;
    const score: Policy["score"] = (...given) => this.#scores = policy.score(...given);
    this.#policy = new Eviction({ policy: { ...policy, score }, budget }, selector);
    this.#wide = new Eviction(
      { policy: { ...policy, score: () => this.#wideScores() }, budget: widened(budget) },
      selector,
    );
  }

  get crossLayer(): boolean {
    return this.#policy.crossLayer;
  }

  /** Bytes held for entries that still compete. */
  get scoreBytes(): number {
    return this.#policy.scoreBytes + this.#wide.scoreBytes;
  }

  /** Takes one layer, each once, and returns the layers that lose entries now: those of the wider selection. */
  async add(observation: Observation): Promise<LayerChange[]> {
    const { layer } = observation, changes = await this.#policy.add(observation);
    const { protectedEntries } = this.#scores!, { length, model: { kvHeads } } = this.#budget;
    this.#protected.set(
      layer,
      Array.from({ length: kvHeads }, (_, head) => positionsOf(protectedEntries, head * length, length)),
    );
    const wide = await this.#wide.add(observation);
    if (this.crossLayer) return wide;
    const kept = wide[0].kept.map((positions, head) => merged(positions, changes[0].kept[head]));
    this.#alone.set(layer, [kept, changes[0].kept]);
    return [{ layer, kept }];
  }

  /** Those of the layer that came last, with more entries where the policy gives every head its own. */
  #wideScores(): LayerScores {
    const { counts, ...scores } = this.#scores!, { length } = this.#budget;
    return counts ? { ...scores, counts: counts.map((count) => Math.min(length, WIDE * count)) } : scores;
  }

  /** What may be chosen of a layer, per KV head; final after the last layer where layers compete. */
  heads(layer: number): WideHead[] {
    const [wide, policy] = this.#alone.get(layer) ?? [this.#wide.kept(layer), this.#policy.kept(layer)];
    return wide.map((positions, head) => {
      const kept = new Set(policy[head]);
      const protectedEntries = this.#protected.get(layer)![head].filter((position) => kept.has(position));
      return { wide: positions, policy: policy[head], protectedEntries };
    });
  }
}

/** Indices of `some` in `all`, both ascending. */
export function indicesIn(all: Int32Array, some: Int32Array): Int32Array {
  const at = new Map(Array.from(all, (position, i) => [position, i]));
  return some.map((position) => at.get(position)!);
}

function widened(budget: Budget): Budget {
  const { length, model: { layers, kvHeads }, perHead, perLayer, total } = budget;
  return {
    ...budget,
    fraction: Math.min(1, WIDE * budget.fraction),
    perHead: Math.min(length, WIDE * perHead),
    perLayer: Math.min(kvHeads * length, WIDE * perLayer),
    total: Math.min(layers * kvHeads * length, WIDE * total),
  };
}

function positionsOf(flags: Uint8Array | undefined, from: number, count: number): Int32Array {
  const positions: number[] = [];
  for (let i = 0; flags && i < count; i++) if (flags[from + i]) positions.push(i);
  return Int32Array.from(positions);
}

function merged(one: Int32Array, other: Int32Array): Int32Array {
  return Int32Array.from(new Set([...one, ...other])).sort();
}
