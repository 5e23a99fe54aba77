/**
 * Eviction on a dump that is read layer by layer: one layer is held at a time, whatever the dump's size.
 *
 * A layer is read once; twice where layers compete and certificates are wanted, and once more in each round of the
 * search for a risk (three rounds reach 35,000 tokens).
 */
import { type Keep, resolveBudget } from "../select/budget.ts";
import { crossLayerSelection } from "../select/cross_layer.ts";
import { Eviction, keepsAll, keptOfAll } from "../select/eviction.ts";
import { KeptSets } from "../select/kept_sets.ts";
import { selectTop } from "../select/select.ts";
import { observationFor } from "../measure/window.ts";
import type { Budget, Needs, Observation, Policy } from "../policy/policy.ts";
import { refuseStages } from "../policy/stages.ts";
import type { AttentionShape } from "../shape.ts";
import type { LayerCertificate } from "../worst_case/certificate.ts";
import { largestMasses, smallestBudget } from "../worst_case/risk_budget.ts";
import { type CertifiedBy, certifyObserved, evidenceOf } from "./certify.ts";
import { type LayerDump, observeDump, splitHeads, windowQueries } from "./evict.ts";

/** What a layer is read for. */
export interface LayerWants {
  /** What the policy looks at. */
  readonly policy: boolean;
  /** Keys and the window's queries, for the risk. */
  readonly risk?: boolean;
  /** Those and values (and the output projection where there is one), for a certificate. */
  readonly certificate?: boolean;
}

/** A dump whose layers are read when asked for. */
export interface DumpLayers {
  readonly shape: AttentionShape;
  /** Context tokens. */
  readonly length: number;
  /** How many there are; they count from 0. */
  readonly layers: number;
  /** Reads one layer; what is not wanted may be empty in it. */
  read(layer: number, wants: LayerWants): Promise<LayerDump>;
}

/** How much stays, and what is told of it. */
export interface EvictOptions {
  /** What stays. */
  readonly keep?: Keep;
  /** Instead: the largest mean loss of attention, 0 … 1. */
  readonly risk?: number;
  /** Certificates too. */
  readonly explain?: boolean;
  /** An AbortSignal. */
  readonly signal?: { readonly throwIfAborted: () => void };
  /** Layers read so far; a search for a risk, and certificates of competing layers, begin anew. */
  readonly onLayer?: (done: number, layers: number) => void;
  /** Runs the work on a layer, which holds the thread for as long as it takes. Default: just runs it. */
  readonly hold?: <T>(work: () => T) => T;
  /** Measures a layer. Default: {@link observeDump}. */
  readonly measure?: MeasureDump;
}

/** As {@link observeDump}, perhaps by a backend's kernels. */
export type MeasureDump = (
  dump: LayerDump,
  layer: number,
  budget: Budget,
  needs: Needs,
) => Observation | Promise<Observation>;

/** What stays of a layer. */
export interface EvictedLayer {
  readonly layer: number;
  /** Positions, ascending, per KV head. */
  readonly kept: readonly Int32Array[];
  readonly certificate?: LayerCertificate;
}

const SELECTOR = { select: (input: Parameters<typeof selectTop>[0]) => Promise.resolve(selectTop(input)) };

/**
 * What `policy` keeps of a dump, layer by layer in order; each as soon as it is known.
 *
 * ```ts
 * for await (const { layer, kept } of evictLayers(resolvePolicy("snapkv"), dump, { keep: { fraction: 0.2 } })) {
 *   kept[0]; // Int32Array of the positions that KV head 0 of the layer keeps
 * }
 * ```
 * @throws PalisadeError `keep.*`, `context.*`, `policy.stages`; RangeError when a shape does not fit or something is missing; what `read`
 * throws; the signal's reason.
 */
export async function* evictLayers(
  policy: Policy,
  dump: DumpLayers,
  options: EvictOptions,
): AsyncGenerator<EvictedLayer> {
  refuseStages(policy);
  const work = new DumpWork(policy, dump, options);
  const { keep, risk } = options;
  const budget = risk === undefined ? work.budget(keep ?? { fraction: 1 }) : await work.budgetAtRisk(risk);
  yield* work.evict(budget);
}

class DumpWork {
  readonly #policy: Policy;
  readonly #dump: DumpLayers;
  readonly #options: EvictOptions;
  /** Held only while budgets are searched for layers that compete. */
  #observations: Observation[] = [];

  constructor(policy: Policy, dump: DumpLayers, options: EvictOptions) {
    this.#policy = policy;
    this.#dump = dump;
    this.#options = options;
  }

  budget(keep: Keep): Budget {
    const { length, shape, layers } = this.#dump;
    return resolveBudget(this.#policy, keep, length, { ...shape, layers });
  }

  async *evict(budget: Budget): AsyncGenerator<EvictedLayer> {
    const policy = this.#policy, { explain } = this.#options, { shape: { kvHeads }, length, layers } = this.#dump;
    const eviction = new Eviction({ policy, budget }, SELECTOR);
    const alone = !eviction.crossLayer, all = keepsAll({ policy, budget });
    if (!alone && !all) {
      for (let layer = 0; layer < layers; layer++) await eviction.add(await this.#observe(layer, budget));
    }
    for (let layer = 0; layer < layers; layer++) {
      const decides = alone && !all;
      const dump = decides || explain ? await this.#read(layer, { policy: decides, certificate: explain }) : undefined;
      const kept = all
        ? Array.from({ length: kvHeads }, () => Int32Array.from({ length }, (_, i) => i))
        : decides
        ? (await eviction.add(await this.#measured(dump!, layer, budget)))[0].kept
        : eviction.kept(layer);
      yield {
        layer,
        kept,
        ...(explain && { certificate: await this.#certificate({ policy, budget }, dump!, layer, kept) }),
      };
    }
  }

  /** The smallest budget in whole tokens per head that holds the risk; see `risk_budget.ts`. */
  async budgetAtRisk(limit: number): Promise<Budget> {
    const policy = this.#policy, { length } = this.#dump;
    const least = Math.min(length, Math.max(1, policy.sinks + policy.window));
    const whole = this.budget({ tokens: length });
    if (policy.allocate.kind === "all" || least === length) return whole;
    if (crossLayerSelection(policy, whole)) {
      for (let layer = 0; layer < this.#dump.layers; layer++) {
        this.#observations.push(await this.#observe(layer, whole));
      }
    }
    const { tokens } = await smallestBudget({ least, most: length }, limit, (each) => {
      return this.#risks(each.map((n) => this.budget({ tokens: n })));
    });
    this.#observations = [];
    return this.budget({ tokens });
  }

  /** The risk of each budget, in one round over the layers. */
  async #risks(budgets: readonly Budget[]): Promise<Float64Array> {
    const { shape, length, layers } = this.#dump, competing = this.#observations.length > 0;
    const chosen = competing ? await this.#decided(budgets) : undefined;
    const sums = new Float64Array(budgets.length);
    for (let layer = 0; layer < layers; layer++) {
      const dump = await this.#read(layer, { policy: !competing, risk: true });
      const kept = chosen
        ? budgets.map((_, c) => chosen.of(c, layer))
        : await this.#keptAlone(await this.#measured(dump, layer, budgets[0]), budgets);
      const { window } = observationFor(this.#policy, this.budget({ tokens: length }));
      const keys = splitHeads(dump.keys, shape.kvHeads, length * shape.headDim, "keys");
      const queries = windowQueries(dump, shape, window);
      const masses = this.#held(() => largestMasses({ shape, length, window, queries, keys }, kept));
      masses.forEach((mass, c) => sums[c] += mass / (shape.heads * layers));
    }
    return sums;
  }

  /** What each budget keeps where layers compete. */
  async #decided(budgets: readonly Budget[]): Promise<KeptSets> {
    const sets = new KeptSets(this.budget({ tokens: this.#dump.length }));
    for (const [c, budget] of budgets.entries()) {
      sets.add(c, await keptOfAll({ policy: this.#policy, budget }, this.#observations, SELECTOR));
    }
    return sets;
  }

  async #keptAlone(observation: Observation, budgets: readonly Budget[]): Promise<Int32Array[][]> {
    const decide = async (budget: Budget) => {
      const [{ kept }] = await new Eviction({ policy: this.#policy, budget }, SELECTOR).add(observation);
      return kept;
    };
    return await Promise.all(budgets.map(decide));
  }

  async #observe(layer: number, budget: Budget): Promise<Observation> {
    return this.#measured(await this.#read(layer, { policy: true }), layer, budget);
  }

  async #measured(dump: LayerDump, layer: number, budget: Budget, needs = this.#policy.needs): Promise<Observation> {
    const { measure = observeDump } = this.#options;
    return await this.#held(() => measure(dump, layer, budget, needs));
  }

  async #certificate(by: CertifiedBy, dump: LayerDump, layer: number, kept: readonly Int32Array[]) {
    const seen: Observation[] = [];
    for (const each of evidenceOf(by, dump)) {
      seen.push(await this.#measured(each.dump, layer, each.budget, each.needs));
    }
    return this.#held(() => certifyObserved(by, dump, seen, kept));
  }

  #held<T>(work: () => T): T {
    const { hold } = this.#options;
    return hold ? hold(work) : work();
  }

  async #read(layer: number, wants: LayerWants): Promise<LayerDump> {
    const { signal, onLayer } = this.#options;
    signal?.throwIfAborted();
    const dump = await this.#dump.read(layer, wants);
    onLayer?.(layer + 1, this.#dump.layers);
    return dump;
  }
}
