/** Certificates as the report says them: per layer the worst of its heads, and each head. */
import {
  type CertificateSummary,
  type LayerCertificate,
  meanLargestMass,
  summariseHead,
  summariseLayer,
} from "../core/worst_case/certificate.ts";

export interface HeadReport extends CertificateSummary {
  readonly kept: number;
  readonly evicted: number;
  /** Evicted entries of the window itself, of which no importance is known. */
  readonly unobserved: number;
}

export interface LayerCertificateReport extends CertificateSummary {
  readonly layer: number;
  /** KV head with the largest evicted mass. */
  readonly worstHead: number;
  readonly heads: readonly HeadReport[];
}

export interface CertificateReport {
  /** Window queries that judge. */
  readonly window: number;
  /** Mean over layers and query heads of the largest mass that a window query lost: what `risk` bounds. */
  readonly risk: number;
  readonly layers: readonly LayerCertificateReport[];
}

/**
 * `changed`, by a refit, a merge or channels left out: other keys or values stand in the cache than those that were proved about, so no bound on
 * outputs holds. What is said of the selection stays true of the selection.
 */
export function certificateReport(certificates: readonly LayerCertificate[], changed = false): CertificateReport {
  const held = (summary: CertificateSummary): CertificateSummary =>
    changed ? { ...summary, outputBound: NaN, projectedBound: summary.projectedBound && NaN } : summary;
  return {
    window: certificates[0]?.window ?? 0,
    risk: meanLargestMass(certificates),
    layers: certificates.map((certificate) => {
      const heads = certificate.heads.map((head) => ({
        kept: head.kept,
        evicted: head.evicted,
        unobserved: head.unobserved,
        ...held(summariseHead(head)),
      }));
      const largest = Math.max(...heads.map(({ evictedMass }) => evictedMass));
      const worstHead = heads.findIndex(({ evictedMass }) => !(evictedMass < largest));
      return { layer: certificate.layer, worstHead, ...held(summariseLayer(certificate)), heads };
    }),
  };
}
