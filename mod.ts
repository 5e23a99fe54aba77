/**
 * The library: load a model, read a context with a bounded KV cache, ask questions.
 *
 * ```ts
 * import { currentRuntime, loadModel, openContext } from "palisade-kv";
 *
 * await using model = await loadModel("SmolLM2-135M-Instruct.Q4_1.gguf", await currentRuntime());
 * using context = await openContext(model, text, { keep: "20%" });
 * const { answer } = await context.ask("Who is Ishmael?");
 * ```
 *
 * Eviction on dumps, without any model: `palisade-kv/core`.
 */
export * from "./core/mod.ts";
export type { Backend, BackendName, LayerRows } from "./core/backend/interface.ts";
export {
  BACKEND_CHOICES,
  type BackendChoice,
  type Device,
  type HostBackendChoice,
  pickBackend,
} from "./model/device.ts";
export { DEFAULT_STEP_RULE, resolveStepRule, stepRules } from "./core/rules/registry.ts";
export type { StepRule } from "./core/rules/rule.ts";
export { RuleState } from "./core/rules/state.ts";
export { type Health, healthOf } from "./core/cache/health.ts";
export { CacheLimit, type LimitFigures, type LimitOptions, type PredictedScores } from "./core/cache/limit.ts";
export { type CacheBytes, type CacheMark, RaggedCache } from "./core/cache/ragged.ts";
export { DEFAULTS } from "./model/defaults.ts";
export { type Architecture, ARCHITECTURES } from "./model/architecture.ts";
export type { ModelConfig, Rope } from "./model/config.ts";
export type { Tensor, Tensors } from "./core/backend/tensor.ts";
export type { Dense, Projected } from "./model/dense/dense.ts";
export { HostDense } from "./model/dense/host.ts";
export type { DenseEngine, DenseName, HostDenseName } from "./model/dense/interface.ts";
export { DENSE_CHOICES, type DenseChoice, pickDense } from "./model/dense/pick.ts";
export { configOf } from "./model/file/gguf/config.ts";
export { measureBy, measureOn } from "./model/dump/kernels.ts";
export { Dump, type DumpOptions, type DumpRope, type NotFinite } from "./model/dump/layers.ts";
export { parsePatterns, type Part, type Patterns } from "./model/dump/names.ts";
export { openDump, openSource } from "./model/dump/open.ts";
export type { DumpContainer, DumpTensor } from "./model/dump/tensors.ts";
export { type GgufFile, openGguf } from "./model/file/gguf/reader.ts";
export {
  type IdentityOptions,
  loadModel,
  type LoadOptions,
  memoryOf,
  type Model,
  type ModelSource,
} from "./model/model.ts";
export type { Expected, NeededMemory } from "./model/needed_memory.ts";
export { type LayersOptions, readContext } from "./model/read/layers.ts";
export type { ReadOptions, ReadResult } from "./model/read/reading.ts";
export { extend } from "./model/decode/extend.ts";
export { type Report, reportOf } from "./model/report.ts";
export { type Effort, type EffortFigures, EFFORTS } from "./model/read/effort.ts";
export { createSampler, type SamplerOptions } from "./model/decode/sampler.ts";
export {
  type Answer,
  type AskOptions,
  type CapFigures,
  type Context,
  type ContextOptions,
  type Finish,
  type MaxCache,
  openContext,
  POSITIONS,
  type Positions,
} from "./model/session.ts";
export { type ByteSink, fileSink, MemorySink } from "./model/snapshot/bytes.ts";
export { SnapshotCache, type SnapshotCacheOptions } from "./model/snapshot/cache.ts";
export { folderStore } from "./model/snapshot/folder_store.ts";
export type { RestoreOptions } from "./model/snapshot/restore.ts";
export type { SaveOptions } from "./model/snapshot/save.ts";
export { type SnapshotInfo, type SnapshotStore, storeSink, storeSource } from "./model/snapshot/store.ts";
export { type DescribedParameter, type DescribedPolicy, describePolicies } from "./core/policy/about.ts";
export type { PolicyAbout } from "./core/policy/policy.ts";
export { loadPolicy } from "./model/policy_files/policy_files.ts";
export {
  isSealed,
  keySecret,
  newKeyFile,
  openSealed,
  passphraseSecret,
  sealedSize,
  type SealOptions,
  sealSink,
  type Secret,
} from "./model/snapshot/seal/seal.ts";
export { indexedDbStore } from "./model/snapshot/stores/indexed_db.ts";
export { openStore, pageStore } from "./model/snapshot/stores/open.ts";
export { opfsStore } from "./model/snapshot/stores/opfs.ts";
export { type S3Options, s3Store } from "./model/snapshot/stores/s3.ts";
export { type ValkeyOptions, valkeyStore } from "./model/snapshot/stores/valkey.ts";
export { Cloak, type CloakedHead, newSalt } from "./model/snapshot/cloak/cloak.ts";
export { cacheFolder, listModels, modelPath, pullModel, removeModel, resolveModel } from "./model/store/store.ts";
export { type Frame, FRAMES, frameText, resolveFrame } from "./model/text/frames.ts";
export type { ChatFrame } from "./model/text/prompt.ts";
export { type TextTokenizer, tokenizerOf } from "./model/text/tokenizer.ts";
export { type ByteSource, currentRuntime, type Runtime } from "./runtime/mod.ts";
export { blobSource, bufferSource, urlSource, withFiles } from "./runtime/sources.ts";
