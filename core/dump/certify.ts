/** Certificates of an eviction on a dump: what `explain` says of a model, without one. */
import type { LayerCertificate } from "../worst_case/certificate.ts";
import { CertificateTracker } from "../worst_case/certificate_tracker.ts";
import {
  type DumpEviction,
  dumpNorms,
  type LayerDump,
  observeDump,
  splitHeads,
  valueHeads,
  windowQueries,
} from "./evict.ts";
import { observationFor } from "../measure/window.ts";
import { byQueryHead, memberProjection } from "../measure/projection.ts";

/**
 * One certificate per layer for what {@link evictDump} kept of the same layers. A policy that observes nothing is judged
 * by the last {@link EXPLAIN_WINDOW} queries.
 * @throws RangeError when a shape does not fit or queries are missing.
 */
export function certifyDump({ policy, budget, kept }: DumpEviction, layers: readonly LayerDump[]): LayerCertificate[] {
  return layers.map((dump, layer) => certifyLayer({ policy, budget }, dump, layer, kept[layer]));
}

/** The same of one layer. */
export function certifyLayer(
  { policy, budget }: Pick<DumpEviction, "policy" | "budget">,
  dump: LayerDump,
  layer: number,
  kept: readonly Int32Array[],
): LayerCertificate {
  const { window, needs } = observationFor(policy, budget);
  const { model: shape, length } = budget;
  const tracker = new CertificateTracker();
  const { pooledMax, logSumExp } = observeDump(dump, layer, { ...budget, window }, needs);
  const values = valueHeads(dump, shape, length);
  const members = Array.from({ length: shape.heads / shape.kvHeads }, (_, i) => i);
  const norms = dump.wo && members.map((member) => {
    return dumpNorms(values, memberProjection(dump.wo!, shape, member), shape);
  });
  tracker.add(layer, {
    shape,
    length,
    window,
    queries: windowQueries(dump, shape, window),
    logSumExp: logSumExp!,
    importance: pooledMax!,
    values,
    projectedNorms: norms && byQueryHead(norms, shape.kvHeads),
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
