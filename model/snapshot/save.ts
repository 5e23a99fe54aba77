/** From a context to a snapshot: `Context.save`. */
import { inputError, option } from "../../core/errors.ts";
import { policyText } from "../../core/policy/policy_text.ts";
import { VERSION } from "../../runtime/version.ts";
import type { ContextState } from "../context.ts";
import type { Model } from "../model.ts";
import { frameText } from "../text/frames.ts";
import type { ByteSink } from "./bytes.ts";
import type { Cloak } from "./cloak/cloak.ts";
import { masked, maskedIds, MASKS, newCloak } from "./cloak/file.ts";
import { type SectionSpec, writeSnapshot } from "./format.ts";
import { type Identity, modelIdentity, readingIdentity } from "./identity.ts";
import { layerSection, layerSpec } from "./layers.ts";
import { bytesOf } from "./rows.ts";
import { sealSink, type Secret } from "./seal/seal.ts";
import { type SavedState, stateMetadata } from "./state.ts";
import { textBytes, type TokenRecord } from "./tokens.ts";

/** What a snapshot holds beside the cache, and how it is written. */
export interface SaveOptions {
  /** Keeps the token ids too, so that the text can be read from the file. Default false: hashes of prefixes. */
  readonly withText?: boolean;
  /** What lists call the text, such as its file's name. It stands in the file as it is. */
  readonly label?: string;
  /**
   * Encrypts the file: a key or a passphrase, which `restore` wants as `secret`. A key costs nothing, a passphrase half a
   * second each time.
   */
  readonly encrypt?: Secret;
  /** Cloaks rows, and masks what else tells tokens (KV-Cloak): obfuscation; see docs/secrets.md for what it is worth. */
  readonly cloak?: Secret;
  /** The sink is aborted when it is. */
  readonly signal?: AbortSignal;
  /** Layers written so far, of all. */
  readonly onLayer?: (done: number, layers: number) => void;
}

/** See `Context.save`. */
export async function saveContext(
  model: Model,
  state: ContextState,
  sink: ByteSink,
  options: SaveOptions,
): Promise<void> {
  let parts: SnapshotParts;
  try {
    parts = await partsOf(model, state, options);
  } catch (error) {
    await sink.abort();
    throw error;
  }
  await writeParts(model, parts, sink, options);
}

/** Writes the parts, sealed if that was asked for, and commits the sink. */
export async function writeParts(
  { runtime }: Pick<Model, "runtime">,
  { metadata, sections }: SnapshotParts,
  sink: ByteSink,
  { encrypt, signal, onLayer }: Pick<SaveOptions, "encrypt" | "signal" | "onLayer">,
): Promise<void> {
  const before = sections.findIndex(({ name }) => name === layerSection(0));
  const onSection = (done: number, all: number) => done > before && onLayer?.(done - before, all - before);
  const to = encrypt ? await sealSink(sink, encrypt) : sink;
  await writeSnapshot(to, metadata, sections, () => runtime.sha256(), { signal, onSection });
}

/** What a snapshot of a context will be made of. */
export interface SnapshotParts {
  readonly identity: Identity;
  readonly metadata: Readonly<Record<string, string>>;
  readonly sections: readonly SectionSpec[];
}

/** The parts; rows are copied when they are written. */
export async function partsOf(
  model: Model,
  state: ContextState,
  { withText = false, label = state.label, cloak: secret, signal }: SaveOptions,
): Promise<SnapshotParts> {
  const { cache, predicted, certificates, frame, read, facts } = state;
  const identity = {
    ...await modelIdentity({ ...model, frame }, read.salt, signal),
    ...readingIdentity(await facts()),
  };
  const { cloak, metadata: cloaked } = secret ? await newCloak(secret) : {};
  const saved = savedState(model, state, label), lead = await maskedIds(cloak, saved.lead);
  const metadata = { ...stateMetadata(identity, { ...saved, lead }), ...cloaked };
  const layers = Array.from({ length: cache.shape.layers }, (_, layer) => {
    return layerSpec(cache, layer, { predicted, certificates }, cloak);
  });
  return { identity, metadata, sections: [...tokenSpecs(read, withText, cloak), ...layers] };
}

function doneTo({ effort, refit, merge, keyChannels }: ContextState): SavedState["done"] {
  return {
    ...(effort && { effort }),
    ...(refit && { refit }),
    ...(merge && { merge }),
    ...(keyChannels && { keyChannels }),
  };
}

function savedState(model: Model, state: ContextState, label: string): SavedState {
  const { budget: { model: _, ...budget }, plan, frame, cache, policy } = state;
  return {
    made: {
      version: VERSION,
      runtime: `${model.runtime.name} ${model.runtime.version}`,
      backend: model.backend.name,
      dense: model.dense.name,
      at: new Date().toISOString(),
    },
    modelName: model.name,
    label,
    policy: policyText(policy),
    tokens: state.tokens,
    replaced: state.replaced,
    position: cache.position,
    seen: cache.seen,
    budget,
    keepCapped: state.keepCapped,
    leastKept: state.leastKept,
    frameTokens: state.frameTokens,
    beyondTrained: plan.beyondTrained,
    markers: plan.markers,
    lead: plan.lead ?? [],
    frame: { name: frame.words.name, text: frameText(frame.words) },
    ...(frame.date !== undefined && { date: frame.date }),
    ...(state.risk && { risk: state.risk }),
    ms: { prefill: state.cost.prefill, evict: state.cost.evict },
    ...(state.left !== undefined && { left: state.left }),
    done: doneTo(state),
  };
}

/** Hashes of prefixes, and the ids where they are to be kept. */
function tokenSpecs(read: TokenRecord, withText: boolean, cloak?: Cloak): SectionSpec[] {
  const { lengths, hashes } = read, text = withText ? textBytes(read) : undefined;
  if (withText && !text) {
    const message = "The context came from a snapshot without its text, so there is no text to keep";
    throw inputError("snapshot.no-text", message, option("withText"));
  }
  const digests = Uint8Array.from(hashes.flatMap((hash) => hash.match(/../g)!.map((byte) => parseInt(byte, 16))));
  const prefixes: SectionSpec = {
    name: "prefixes",
    tensors: [
      { name: "lengths", dtype: "I32", shape: [lengths.length] },
      { name: "hashes", dtype: "U8", shape: [lengths.length, 32] },
    ],
    bytes: async () => [bytesOf(Int32Array.from(lengths)), await masked(cloak, MASKS.prefixes, digests)],
  };
  if (!text) return [prefixes];
  const ids: SectionSpec["tensors"] = [{ name: "ids", dtype: "I32", shape: [text.length / 4] }];
  return [prefixes, { name: "text", tensors: ids, bytes: async () => [await masked(cloak, MASKS.text, text)] }];
}
