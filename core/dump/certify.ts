/** Certificates of an eviction on a dump: what `explain` says of a model, without one. */
import type { LayerCertificate } from "../worst_case/certificate.ts";
import { CertificateTracker } from "../worst_case/certificate_tracker.ts";
import { type DumpEviction, type LayerDump, observeDump, splitHeads, valueHeads, windowQueries } from "./evict.ts";
import type { Budget, Needs, Observation } from "../policy/policy.ts";
import { observationFor } from "../measure/window.ts";
import { byQueryHead, memberProjection } from "../measure/projection.ts";

/**
 * One certificate per layer for what {@link evictDump} kept of the same layers. A policy that observes nothing is judged
 * by the last {@link EXPLAIN_WINDOW} queries.
 * @throws RangeError when a shape does not fit or queries are missing.
 */
export function certifyDump({ policy, budget, kept }: DumpEviction, layers: readonly LayerDump[]): LayerCertificate[] {
  return layers.map((dump, layer) => {
    const evidence = evidenceOf({ policy, budget }, dump);
    const seen = Array.from(evidence, (each) => observeDump(each.dump, layer, each.budget, each.needs));
    return certifyObserved({ policy, budget }, dump, seen, kept[layer]);
  });
}

/** What decided. */
export type CertifiedBy = Pick<DumpEviction, "policy" | "budget">;

/** What is to be measured. */
interface Evidence {
  readonly dump: LayerDump;
  readonly budget: Budget;
  readonly needs: Needs;
}

/** What must be measured of a layer, in order: its window, and the norms of each member of the groups. */
export function* evidenceOf({ policy, budget }: CertifiedBy, dump: LayerDump): Generator<Evidence> {
  const { window, needs } = observationFor(policy, budget), { model: shape } = budget;
  yield { dump, budget: { ...budget, window }, needs };
  for (let member = 0; dump.wo && member < shape.heads / shape.kvHeads; member++) {
    const wo = memberProjection(dump.wo, shape, member);
    yield { dump: { ...dump, wo }, budget, needs: { valueNorms: "l1" } };
  }
}

/** The certificate of a layer, {@link evidenceOf} it having been measured. */
export function certifyObserved(
  { policy, budget }: CertifiedBy,
  dump: LayerDump,
  [{ layer, pooledMax, logSumExp }, ...norms]: readonly Observation[],
  kept: readonly Int32Array[],
): LayerCertificate {
  const { window } = observationFor(policy, budget);
  const { model: shape, length } = budget;
  const tracker = new CertificateTracker();
  tracker.add(layer, {
    shape,
    length,
    window,
    queries: windowQueries(dump, shape, window),
    logSumExp: logSumExp!,
    importance: pooledMax!,
    values: valueHeads(dump, shape, length),
    projectedNorms: dump.wo && byQueryHead(norms.map(({ valueNorms }) => valueNorms!), shape.kvHeads),
  });
  tracker.compact(layer, kept);
  const keys = splitHeads(dump.keys, shape.kvHeads, length * shape.headDim, "keys");
  return tracker.certificate(layer, keys.map((head, h) => pickRows(head, kept[h], shape.headDim)));
}

function pickRows(rows: Float32Array, kept: Int32Array, width: number): Float32Array {
  const picked = new Float32Array(kept.length * width);
  kept.forEach((row, i) => picked.set(rows.subarray(row * width, (row + 1) * width), i * width));
  return picked;
}
