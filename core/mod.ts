/**
 * palisade-kv/core: eviction policies for key-value caches as pure functions over typed arrays. No model, no runtime
 * names, no I/O.
 *
 * ```ts
 * import { evictDump } from "palisade-kv/core";
 *
 * // One entry per layer: queries [heads, L, headDim], keys and values [kvHeads, L, headDim], wo [width, heads · headDim].
 * const { kept } = evictDump("layer-defensive", { fraction: 0.2 }, { heads: 9, kvHeads: 3, headDim: 64 }, layers);
 * kept[0][0]; // Int32Array of the positions that layer 0, KV head 0 keeps
 * ```
 *
 * @module
 */
export { layerSelections, segmentsOf, selectLayer } from "./select/allocate.ts";
export { CACHE_TYPES, type CacheType, checkCacheType, entryBytes } from "./cache/entry_type.ts";
export { checkKeep, type Keep, parseKeep, resolveBudget } from "./select/budget.ts";
export {
  type CertificateSummary,
  type HeadCertificate,
  type LayerCertificate,
  meanLargestMass,
  summariseHead,
  summariseLayer,
} from "./worst_case/certificate.ts";
export { CertificateTracker, type LayerEvidence } from "./worst_case/certificate_tracker.ts";
export { certifyDump } from "./dump/certify.ts";
export { type CoverageOptions, coverageSet } from "./measure/coverage.ts";
export { type DumpEviction, evictDump, type LayerDump, observeDump } from "./dump/evict.ts";
export {
  type DumpLayers,
  type EvictedLayer,
  evictLayers,
  type EvictOptions,
  type LayerWants,
  type MeasureDump,
} from "./dump/layers.ts";
export { type ErrorKind, PalisadeError, type Where } from "./errors.ts";
export { type OptionMention, type OptionName, type Said, spoken } from "./options.ts";
export { CascadeSelection } from "./select/cascade.ts";
export { JointSelection } from "./select/joint.ts";
export { gateScores, type LinearGate } from "./measure/gate_scores.ts";
export { observeWindow, type WindowInput, type WindowObservation } from "./measure/observe.ts";
export type {
  Allocation,
  Budget,
  HeadScores,
  LayerScores,
  Needs,
  Observation,
  Parameter,
  ParameterValues,
  Policy,
  PolicyEntry,
  PolicyFileKind,
  PolicyFileNeed,
  PolicyFiles,
  PolicyMode,
  Reduction,
  ScoreMeaning,
} from "./policy/policy.ts";
export { randomSource } from "./measure/random.ts";
export { policies, resolvePolicy } from "./policy/registry.ts";
export { defensiveRisk } from "./worst_case/risk.ts";
export { largestMasses, type RiskBudget, smallestBudget, type WholeLayer } from "./worst_case/risk_budget.ts";
export { type KeyRotation, rotateRows } from "./measure/rotation.ts";
export { selectAll } from "./select/select_layers.ts";
export { type Segment, type SelectionInput, selectTop } from "./select/select.ts";
export type { AttentionShape, ModelShape } from "./shape.ts";
export { type CrossLayerSelection, crossLayerSelection } from "./select/cross_layer.ts";
export type { LayerChange } from "./select/candidates.ts";
export { keepAbove } from "./select/threshold.ts";
export { valueNorms } from "./measure/value_norms.ts";
export { NORM_AXES, type NormAxis, valueShares } from "./measure/value_share.ts";
