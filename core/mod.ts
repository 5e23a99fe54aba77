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
export { layerSelections, segmentsOf, selectLayer } from "./allocate.ts";
export { CACHE_TYPES, type CacheType, checkCacheType, entryBytes } from "./cache_type.ts";
export { checkKeep, type Keep, parseKeep, resolveBudget } from "./budget.ts";
export {
  type CertificateSummary,
  type HeadCertificate,
  type LayerCertificate,
  meanLargestMass,
  summariseHead,
  summariseLayer,
} from "./certificate.ts";
export { CertificateTracker, type LayerEvidence } from "./certificate_tracker.ts";
export { certifyDump } from "./certify_dump.ts";
export { type CoverageOptions, coverageSet } from "./coverage.ts";
export { type DumpEviction, evictDump, type LayerDump, observeDump } from "./dump.ts";
export { type ErrorKind, PalisadeError } from "./errors.ts";
export { CascadeSelection } from "./cascade.ts";
export { JointSelection } from "./joint.ts";
export { gateScores, type LinearGate } from "./gate_scores.ts";
export { observeWindow, type WindowInput, type WindowObservation } from "./observe.ts";
export type {
  Budget,
  HeadScores,
  LayerScores,
  Needs,
  Observation,
  Parameter,
  ParameterValues,
  Policy,
  PolicyEntry,
  PolicyMode,
  PolicySources,
  Reduction,
  Scope,
} from "./policy.ts";
export { randomSource } from "./random.ts";
export { policies, resolvePolicy } from "./registry.ts";
export { defensiveRisk } from "./risk.ts";
export { largestMasses, type RiskBudget, smallestBudget, type WholeLayer } from "./risk_budget.ts";
export { type KeyRotation, rotateRows } from "./rotation.ts";
export { selectAll } from "./select_all.ts";
export { type Segment, type SelectionInput, selectTop } from "./select.ts";
export type { AttentionShape, ModelShape } from "./shape.ts";
export { type StreamingSelection, streamingSelection } from "./streaming.ts";
export type { LayerChange } from "./survivors.ts";
export type { StepRule } from "./step.ts";
export { DEFAULT_STEP_RULE, resolveStepRule, stepRules } from "./step_registry.ts";
export { StepState } from "./step_state.ts";
export { keepAbove } from "./threshold.ts";
export { valueNorms } from "./value_norms.ts";
export { NORM_AXES, type NormAxis, valueShares } from "./value_share.ts";
