/** Certificates of a reading: the evidence is taken layer by layer, before anything of the layer is evicted. */
import { copyHeads } from "../../core/backend/copy_heads.ts";
import type { LayerRows } from "../../core/backend/interface.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { LayerCertificate } from "../../core/worst_case/certificate.ts";
import { CertificateTracker } from "../../core/worst_case/certificate_tracker.ts";
import { observationFor } from "../../core/measure/window.ts";
import type { Budget, Needs, Observation, Policy } from "../../core/policy/policy.ts";
import { byQueryHead, memberProjection } from "../../core/measure/projection.ts";
import { joinHeads, joinObservations, joinQueries } from "../joined.ts";
import type { LayerSeen } from "./layer_reader.ts";

export interface ExplainOptions {
  readonly policy: Policy;
  readonly budget: Budget;
  readonly outputWeights: (layer: number) => Promise<Float32Array>;
}

export class Explainer {
  /** Queries it needs of each layer, from the end. */
  readonly window: number;
  readonly #cache: RaggedCache;
  readonly #options: ExplainOptions;
  readonly #needs: Needs;
  readonly #tracker = new CertificateTracker();
  /** Of layers whose keys are about to change. */
  readonly #settled = new Map<number, LayerCertificate>();

  constructor(cache: RaggedCache, options: ExplainOptions) {
    const { window, needs } = observationFor(options.policy, options.budget);
    this.window = window;
    this.#cache = cache;
    this.#options = options;
    this.#needs = needs;
  }

  /**
   * Takes the evidence of a global layer that is whole, by its last `window` queries, and those of the layers that look at
   * its rows. Copies the layer's values for a moment, and weighs them once per query head of a group.
   */
  async add(layer: number, seen: LayerSeen): Promise<void> {
    const { model: { kvHeads }, length } = this.#options.budget, rows = this.#cache.rows(layer);
    const all = [{ layer, seen }, ...seen.readers ?? []], of: Observation[] = [], queries: Float32Array[] = [];
    const norms: Float32Array[] = [];
    for (const { layer, seen: { windowQueries } } of all) {
      const measured = await rows.observe(windowQueries, this.window, this.#needs);
      of.push({ layer, shape: rows.shape, length, window: this.window, ...measured });
      queries.push(await this.#cache.backend.tensors.read(windowQueries));
      norms.push(byQueryHead(await this.#projectedNorms(layer, rows), kvHeads));
    }
    const { shape, pooledMax, logSumExp } = joinObservations(of);
    this.#tracker.add(layer, {
      shape,
      length,
      window: this.window,
      queries: joinQueries(queries, this.window, kvHeads),
      logSumExp: logSumExp!,
      importance: pooledMax!,
      values: (await copyHeads(rows)).map(({ values }) => values),
      projectedNorms: joinHeads(norms, kvHeads),
    });
  }

  /** Of each member of a group, `[kvHeads, length]`. */
  async #projectedNorms(layer: number, rows: LayerRows): Promise<Float32Array[]> {
    const { model: shape } = this.#options.budget, norms: Float32Array[] = [];
    const wo = await this.#options.outputWeights(layer), width = wo.length / (shape.heads * shape.headDim);
    for (let member = 0; member < shape.heads / shape.kvHeads; member++) {
      norms.push(await rows.valueNorms(memberProjection(wo, shape, member), width));
    }
    return norms;
  }

  /** Follows an eviction; before or after the cache does. */
  compact(layer: number, kept: readonly Int32Array[]): void {
    this.#tracker.compact(layer, kept);
  }

  /** From what the cache holds now: before any key is turned, and before a question. */
  async certificates(): Promise<LayerCertificate[]> {
    const certificates: LayerCertificate[] = [];
    for (const layer of this.#cache.globals) {
      certificates.push(this.#settled.get(layer) ?? await this.#certificate(layer));
    }
    return certificates;
  }

  /** Takes a layer's certificate now: nothing more of it will be evicted, and its keys won't stay. */
  async settle(layer: number): Promise<void> {
    this.#settled.set(layer, await this.#certificate(layer));
  }

  async #certificate(layer: number): Promise<LayerCertificate> {
    const heads = await copyHeads(this.#cache.rows(layer));
    return this.#tracker.certificate(layer, heads.map(({ keys }) => keys));
  }
}
