/**
 * One prefill for many policies and budgets, and as many prefills as their ways of reading ask for ({@link readingsOf}).
 *
 * The context is read once and nothing is evicted. After each layer every case is scored and selected from what that
 * layer left behind, and only its kept positions stay. They are what `openContext` would keep
 * (`tests/evaluate/shared_prefill_test.ts`). Policies with other windows or pooling kernels are observed anew on the same
 * rows.
 *
 * Memory: the full cache, the kept positions of each case (four bytes an entry), for policies whose layers compete
 * the scores that are still in the race, and in {@link forkCache} one fork and one layer's kept rows. One fork at a time.
 */
import { observeRows } from "../../core/backend/observe_rows.ts";
import { Temporaries } from "../../core/backend/tensor.ts";
import { type HeadRows, RaggedCache } from "../../core/cache/ragged.ts";
import { Eviction, keepsAll, type Selector } from "../../core/select/eviction.ts";
import { WideEviction, type WideHead } from "../../core/select/wide.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import { type Keep, resolveBudget } from "../../core/select/budget.ts";
import type { Budget, Needs, NormKind, Observation, Policy, Reduction } from "../../core/policy/policy.ts";
import type { Gate } from "../../model/gate/file.ts";
import type { Model } from "../../model/model.ts";
import { LayerReader, type LayerSeen } from "../../model/read/layer_reader.ts";
import { withFrameKept } from "../../model/read/frame_kept.ts";
import { frameTokens } from "../../model/text/prompt.ts";
import type { RefitSettings } from "../../core/refit/refit.ts";
import type { LayerReferences } from "../../model/read/references.ts";
import { type RefitFigures, RefitStage } from "../../model/read/refit.ts";
import { KeyChannelStage } from "../../model/read/key_channels.ts";
import { checkMerge, MergeStage, mergeWindow } from "../../model/read/merge.ts";
import { policyInputs } from "../../model/read/policy_inputs.ts";

/** A policy at a budget. */
export interface Case {
  readonly policy: Policy;
  readonly keep: Keep;
}

/** What a case would keep of the context. */
export interface KeptCase extends Case {
  readonly budget: Budget;
  /** Kept positions, ascending, `[global layers][kvHeads]`; undefined when everything stays. */
  readonly kept: readonly (readonly Int32Array[])[] | undefined;
  /** What a pursuit may choose among, `[global layers][kvHeads]`, where one is asked for. */
  readonly choices?: readonly (readonly WideHead[])[];
  /** Rows that stayed, of those left by then, each time a layer lost some, `[global layers][times][kvHeads]`: for merges. */
  readonly steps?: readonly (readonly (readonly Int32Array[])[])[];
  /** Milliseconds of scoring and selecting; observing is shared ({@link SharedPrefill.ms}). */
  readonly evictMs: number;
  /** Last tokens by whose queries entries are merged or key channels are left out; 0 where neither is done. */
  readonly window: number;
}

export interface SharedPrefill extends Disposable {
  /** The whole context's cache; disposed with this object. */
  readonly cache: RaggedCache;
  readonly cases: readonly KeptCase[];
  /** What a refit goes by, layer by layer, when asked. */
  readonly references: readonly LayerReferences[];
  /** The last queries of each global layer, `[window, heads, headDim]`, where a case merges or leaves out key channels. */
  readonly lastQueries: readonly Float32Array[];
  /** Hidden state of the last token before the final norm, `[width]`. */
  readonly lastHidden: Float32Array;
  /** Milliseconds of the forward pass, and of observing for all cases together. */
  readonly ms: { readonly prefill: number; readonly observe: number };
}

export interface PrefillOptions {
  /** Lets kvzip repeat the context beyond the trained length. */
  readonly beyondTrained?: boolean;
  /** Tokens, about, whose queries a refit is to go by. Default: none is wanted. */
  readonly referenceTokens?: number;
  /** How the cache stores keys and values. Default `f32`. */
  readonly cacheType?: CacheType;
  /** Instead of the gate that belongs to the model; `self-gate` begins with it. Default there: with nothing. */
  readonly gate?: Gate;
  readonly onLayer?: (done: number, layers: number) => void;
  readonly signal?: AbortSignal;
}

/** What one prefill of the whole context can measure for everybody. */
const SHARED: readonly string[] = [
  "window",
  "kernel",
  "valueNorms",
  "dropErrors",
  "columnSum",
  "columnMax",
  "rows",
  "file",
] satisfies readonly (keyof Needs)[];

/** What one pass can do in one way only, for all that ask for it. */
const ONE_WAY = [
  "reconstruction",
  "queryStatistics",
  "pairStatistics",
  "moved",
  "selfGate",
  "gate",
] as const satisfies readonly (keyof Needs)[];

/** False for policies that must read the context in their own way: those go through `openContext`, one by one. */
export function sharesPrefill({ needs, evicts, stages }: Policy): boolean {
  // A refit goes by queries that repeat the context, where the policy has it repeated; not behind a merge.
  if (stages?.refit && (stages.merge || !needs.reconstruction)) return false;
  // All that share a reading have the model's own statistics.
  if (needs.file?.kind === "statistics") return false;
  const known = [...SHARED, ...ONE_WAY];
  return evicts === "late" && Object.entries(needs).every(([name, wanted]) => !wanted || known.includes(name));
}

/** Cases that share a prefill ({@link sharesPrefill}), by the reading that they can have together; in the order given. */
export function readingsOf<C extends Case>(cases: readonly C[]): C[][] {
  const readings: C[][] = [];
  for (const each of cases) {
    const fitting = readings.find((others) => others.every((other) => readTogether(each.policy, other.policy)));
    if (fitting) fitting.push(each);
    else readings.push([each]);
  }
  return readings;
}

function readTogether({ needs: one }: Policy, { needs: other }: Policy): boolean {
  return ONE_WAY.every((name) =>
    !one[name] || !other[name] || JSON.stringify(one[name]) === JSON.stringify(other[name])
  );
}

/**
 * Reads `ids` and notes what each of `cases` keeps. All must share this prefill ({@link readingsOf}).
 * @throws PalisadeError `keep.*`, `context.*` as `resolveBudget`; `merge.backend`.
 */
export async function prefillOnce(
  model: Omit<Model, keyof AsyncDisposable>,
  ids: readonly number[],
  cases: readonly Case[],
  options: PrefillOptions = {},
): Promise<SharedPrefill> {
  const { config } = model;
  for (const { policy } of cases) checkMerge(policy.stages?.merge, model.backend);
  const caseEvictions = cases.map((each) => new CaseEviction(framed(model, ids, each), model.backend));
  const scoring = caseEvictions.filter(({ keepsAll }) => !keepsAll);
  const cache = new RaggedCache(model.backend, config, options.cacheType);
  try {
    const outputWeights = (layer: number) => model.file.readFloat32(`blk.${layer}.attn_output.weight`);
    const window = Math.max(0, ...caseEvictions.map((each) => each.stageWindow(ids.length)));
    const observer = new Observer(cache, scoring, outputWeights, window);
    const { beyondTrained, gate, signal, referenceTokens } = options, references: LayerReferences[] = [];
    const lastQueries: Float32Array[] = [];
    // A cell is the same on every machine, whatever was read there before.
    const needed = { needs: observer.wanted.needs, refit: referenceTokens ? "both" as const : "none" as const };
    const inputs = await policyInputs(model, needed, ids, { beyondTrained, gate, learned: false });
    using reader = await LayerReader.open(model, cache, ids, {
      ...observer.wanted,
      ...inputs,
      signal,
      referenceTokens,
      outputWeights,
    });
    const ms = { prefill: 0, observe: 0 };
    for (let layer = 0; layer < config.layers; layer++) {
      const start = performance.now();
      const seen = await reader.layer(layer);
      const read = performance.now(), index = cache.globals.indexOf(layer);
      const observed = index < 0 ? undefined : await observer.observe(layer, index, seen);
      if (index >= 0 && window > 0) lastQueries.push((await model.backend.tensors.read(seen.windowQueries)).slice());
      reader.release(seen);
      if (seen.references) references.push(seen.references);
      ms.prefill += read - start;
      ms.observe += performance.now() - read;
      if (observed) { for (const caseEviction of scoring) await caseEviction.add(observed.get(caseEviction)!); }
      options.onLayer?.(layer + 1, config.layers);
    }
    cache.advance(ids.length);
    return {
      cache,
      references,
      lastQueries,
      cases: caseEvictions.map((caseEviction) => caseEviction.result()),
      lastHidden: await reader.lastHidden(),
      ms,
      [Symbol.dispose]: () => cache[Symbol.dispose](),
    };
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
}

/**
 * A cache of its own, of `type`, that holds only the kept entries, `[global layers][kvHeads]`, and what window layers hold; `full`,
 * which must be whole, is left as it is. Layer by layer,
 * so that copies of one layer's kept rows are held beside the fork, never of all.
 */
export function forkCache(
  full: RaggedCache,
  kept: readonly (readonly Int32Array[])[],
  type: CacheType = full.type,
): Promise<RaggedCache> {
  return filled(full, new RaggedCache(full.backend, full.shape, type), (index) => kept[index]);
}

/** As {@link forkCache} by what `each` keeps, with what it evicts merged into that as often as it evicted. */
export function forkMerged(prefill: SharedPrefill, each: KeptCase, type?: CacheType): Promise<RaggedCache> {
  const { cache: full } = prefill, { backend, shape } = full, { policy: { stages }, steps, window } = each;
  const fork = new RaggedCache(backend, shape, type ?? full.type, full.type);
  const stage = new MergeStage(fork, stages!.merge!, window);
  return filled(full, fork, () => undefined, async (layer, index) => {
    using temporaries = new Temporaries(backend.tensors);
    await stage.add(layer, temporaries.add(backend.tensors.upload(lastOf(prefill, index, window).slice())));
    for (const rows of steps![index]) await stage.compact(layer, rows);
    stage.forget(layer);
  });
}

/** `fork` with the rows of `full` that are wanted, all where nothing is said; disposed when that fails. */
async function filled(
  full: RaggedCache,
  fork: RaggedCache,
  wanted: (index: number) => readonly Int32Array[] | undefined,
  change?: (layer: number, index: number) => Promise<void>,
): Promise<RaggedCache> {
  const { shape } = full;
  try {
    for (let layer = 0; layer < shape.layers; layer++) {
      const rows = full.rows(layer);
      const index = full.globals.indexOf(layer), kept = index < 0 ? undefined : wanted(index), heads: HeadRows[] = [];
      for (let head = 0; head < rows.shape.kvHeads; head++) {
        // In a global layer of a whole cache a row's index is its position.
        const positions = kept?.[head] ?? full.positions(layer, head);
        heads.push({ ...await rows.copyRows(head, kept?.[head]), positions });
      }
      fork.fill(layer, heads);
      if (index >= 0) await change?.(layer, index);
      await fork.pack(layer);
    }
    fork.advance(full.position);
    return fork;
  } catch (error) {
    fork[Symbol.dispose]();
    throw error;
  }
}

/** The queries of the last `window` tokens in the `index`-th global layer. */
function lastOf({ cache, lastQueries }: SharedPrefill, index: number, window: number): Float32Array {
  const { heads, headDim } = cache.shape, queries = lastQueries[index];
  return queries.subarray(queries.length - window * heads * headDim);
}

/** What a pursuit keeps of a case's candidates, `[global layers][kvHeads]`, by what the prefill kept for refits. */
export async function pursuedOf(
  { cache, references }: SharedPrefill,
  { choices }: KeptCase,
  settings: RefitSettings,
): Promise<Int32Array[][]> {
  const stage = new RefitStage(cache, settings), kept: Int32Array[][] = [];
  for (const [index, heads] of choices!.entries()) {
    const layer = cache.globals[index];
    stage.add(layer, references[index]);
    const chosen = await stage.pursue(layer, cache.rows(layer), heads, ({ wide }) => wide, {});
    kept.push(chosen.map((rows, head) => rows.map((row) => heads[head].wide[row])));
  }
  return kept;
}

/** Refits a fork of {@link forkCache} by what its prefill kept for that. */
export async function refitFork(
  fork: RaggedCache,
  prefill: SharedPrefill,
  settings: RefitSettings,
): Promise<RefitFigures> {
  const stage = new RefitStage(fork, settings);
  prefill.references.forEach((references, index) => stage.add(fork.globals[index], references));
  await stage.run(prefill.cache.position, {});
  return stage.figures();
}

/** Leaves key channels out of a fork of {@link forkCache}, after any refit, by what its prefill kept for that. */
export async function thinFork(fork: RaggedCache, prefill: SharedPrefill, each: KeptCase): Promise<void> {
  const { policy: { stages }, window } = each;
  const stage = new KeyChannelStage(fork, stages!.keyChannels!, window);
  fork.globals.forEach((layer, index) => stage.take(layer, lastOf(prefill, index, window)));
  await stage.run();
}

/** A case, and the policy and budget that it comes to for one context. */
interface KeptRule {
  readonly case: Case;
  readonly policy: Policy;
  readonly budget: Budget;
}

/** As `openContext` plans it: the frame's tokens are protected. */
function framed(model: Pick<Model, "config" | "tokenizer" | "frame">, ids: readonly number[], each: Case): KeptRule {
  const { config } = model, resolved = (policy: Policy) => resolveBudget(policy, each.keep, ids.length, config);
  const policy = withFrameKept(each.policy, frameTokens(model, ids), resolved(each.policy));
  return { case: each, policy, budget: resolved(policy) };
}

/** Scores and selects for one case, layer by layer. */
class CaseEviction {
  readonly case: Case;
  readonly budget: Budget;
  readonly #kept: Int32Array[][] = [];
  /** {@link KeptCase.steps} */
  readonly #steps?: Int32Array[][][];
  /** Undefined when everything stays. */
  readonly #eviction?: Eviction | WideEviction;
  #ms = 0;

  constructor(rule: KeptRule, selector: Selector) {
    this.case = rule.case;
    this.budget = rule.budget;
    const kind = rule.policy.stages?.refit === "pursuit" ? WideEviction : Eviction;
    if (keepsAll(rule)) return;
    this.#eviction = new kind(rule, selector);
    if (rule.policy.stages?.merge) this.#steps = Array.from({ length: rule.budget.model.layers }, () => []);
  }

  get keepsAll(): boolean {
    return this.#eviction === undefined;
  }

  async add(observation: Observation): Promise<void> {
    const start = performance.now();
    const changes = await this.#eviction!.add(observation);
    if (!this.#eviction!.crossLayer) this.#kept.push(changes[0].kept);
    if (this.#steps) { for (const { layer, kept } of changes) this.#steps[layer].push(kept); }
    this.#ms += performance.now() - start;
  }

  /** As a reading of its own would have it. */
  stageWindow(length: number): number {
    const { stages, needs } = this.case.policy;
    if (!stages?.keyChannels && !this.#steps) return 0;
    return (needs.window && !this.keepsAll ? this.budget.window : 0) || mergeWindow(length);
  }

  result(): KeptCase {
    const { length, model: { layers } } = this.budget;
    const eviction = this.#eviction,
      each = <T>(of: (layer: number) => T) => Array.from({ length: layers }, (_, l) => of(l));
    const choices = eviction instanceof WideEviction ? each((layer) => eviction.heads(layer)) : undefined;
    const kept = choices?.map((heads) => heads.map(({ policy }) => policy)) ??
      (eviction?.crossLayer ? each((layer) => (eviction as Eviction).kept(layer)) : this.#kept);
    return {
      ...this.case,
      budget: this.budget,
      kept: this.keepsAll ? undefined : kept,
      choices,
      steps: this.#steps,
      evictMs: this.#ms,
      window: this.stageWindow(length),
    };
  }
}

/** Measures one layer as often as there are different windows and kernels. */
class Observer {
  readonly wanted: { readonly needs: Needs; readonly window: number };
  readonly #cache: RaggedCache;
  readonly #groups: readonly ObserveGroup[];
  readonly #outputWeights: (layer: number) => Promise<Float32Array>;

  constructor(
    cache: RaggedCache,
    caseEvictions: readonly CaseEviction[],
    outputWeights: (layer: number) => Promise<Float32Array>,
    leastWindow: number,
  ) {
    this.#cache = cache;
    this.#outputWeights = outputWeights;
    this.#groups = groupsOf(caseEvictions);
    const observed = caseEvictions.filter(({ case: { policy } }) => policy.needs.window);
    this.wanted = {
      needs: unionOf(caseEvictions),
      window: observed.reduce((most, { budget }) => Math.max(most, budget.window), leastWindow),
    };
  }

  /** A global layer, the `index`-th of them. */
  async observe(layer: number, index: number, seen: LayerSeen): Promise<Map<CaseEviction, Observation>> {
    const { windowQueries, ...shared } = seen;
    const rows = this.#cache.rows(layer);
    const norms = new Map<NormKind | undefined, Float32Array>();
    for (const kind of new Set(this.#groups.flatMap(({ members }) => members.map(normsOf)))) {
      if (kind) norms.set(kind, await this.#valueNorms(layer, kind));
    }
    const observations = new Map<CaseEviction, Observation>();
    const { tensors } = this.#cache.backend;
    for (const { members, needs, window } of this.#groups) {
      const { model: shape, length } = members[0].budget;
      using temporaries = new Temporaries(tensors);
      const count = Math.min(windowQueries.length, window * shape.heads * shape.headDim);
      const queries = temporaries.add(tensors.zeros(count));
      tensors.copy(windowQueries, windowQueries.length - count, count, queries, 0);
      const measured = needs.window || needs.rows ? await observeRows(tensors, rows, queries, window, needs) : {};
      const observation = { layer: index, shape, length, window, ...shared, ...measured };
      for (const member of members) {
        observations.set(member, { ...observation, valueNorms: norms.get(normsOf(member)) });
      }
    }
    return observations;
  }

  async #valueNorms(layer: number, kind: NormKind): Promise<Float32Array> {
    const { heads, headDim } = this.#cache.shape;
    const wo = await this.#outputWeights(layer);
    return await this.#cache.rows(layer).valueNorms(wo, wo.length / (heads * headDim), kind);
  }
}

/** Cases that one call of `observe` serves. */
interface ObserveGroup {
  readonly members: readonly CaseEviction[];
  readonly needs: Needs;
  readonly window: number;
}

function normsOf(caseEviction: CaseEviction): NormKind | undefined {
  return caseEviction.case.policy.needs.valueNorms;
}

function groupsOf(caseEvictions: readonly CaseEviction[]): ObserveGroup[] {
  const byKey = new Map<string, CaseEviction[]>();
  for (const caseEviction of caseEvictions) {
    const { policy: { needs } } = caseEviction.case;
    const key = `${caseEviction.budget.window}/${needs.window ? needs.kernel ?? "" : "none"}`;
    byKey.set(key, [...byKey.get(key) ?? [], caseEviction]);
  }
  return [...byKey.values()].map((members) => ({
    members,
    needs: { ...unionOf(members), kernel: members[0].case.policy.needs.kernel },
    window: members[0].budget.window,
  }));
}

function unionOf(caseEvictions: readonly CaseEviction[]): Needs {
  const needs = caseEvictions.map(({ case: { policy } }) => policy.needs);
  const window = new Set<Reduction>(needs.flatMap((each) => each.window ?? []));
  return {
    ...(window.size > 0 && { window: [...window] }),
    ...(needs.some((each) => each.valueNorms) && { valueNorms: "l1" }),
    dropErrors: needs.some((each) => each.dropErrors),
    columnSum: needs.some((each) => each.columnSum),
    columnMax: needs.some((each) => each.columnMax),
    rows: needs.some((each) => each.rows),
    // All that ask for one of these ask for it in the same way.
    ...Object.fromEntries(ONE_WAY.map((name) => [name, needs.find((each) => each[name])?.[name]])),
  };
}
