/**
 * From a snapshot to a context: `Model.restore`. Everything is checked before anything is used, in this order: size,
 * version, manifest, header, identity, then each section as it is read. Rows go into a cache of their own, so that a
 * refusal leaves nothing behind and harms nobody.
 */
import { ALL_CACHE_TYPES, type CacheType } from "../../core/cache/entry_type.ts";
import type { ReducedHead } from "../../core/backend/reduced.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { inputError, option, PalisadeError, resourceError, say } from "../../core/errors.ts";
import type { Policy } from "../../core/policy/policy.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { type Keep, parseKeep } from "../../core/select/budget.ts";
import { globalShape } from "../../core/shape.ts";
import type { LayerCertificate } from "../../core/worst_case/certificate.ts";
import { breathe } from "../../runtime/breathe.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { type Context, contextOf, type ContextState, laidToRest, lasting } from "../context.ts";
import { type DecodePlan, type Positions, withPredictions } from "../decode/answer.ts";
import { type MaxCache, resolveMaxCache } from "../decode/max_cache.ts";
import type { Model, ModelHead } from "../model.ts";
import { gateScorer } from "../read/policy_inputs.ts";
import { checkRowsOf } from "../read/plan.ts";
import { checkRefit } from "../read/refit.ts";
import { frameText, NO_FRAME } from "../text/frames.ts";
import { type ChatFrame, withWords } from "../text/prompt.ts";
import type { ByteSource } from "./bytes.ts";
import type { Cloak } from "./cloak/cloak.ts";
import { cloakOf, masked, maskedIds, MASKS } from "./cloak/file.ts";
import { openSnapshot, refuse, type SnapshotFile } from "./format.ts";
import {
  budgetWords,
  firstDifference,
  type Identity,
  type ModelIdentity,
  modelIdentity,
  policyIdentity,
  refuseDifference,
} from "./identity.ts";
import { readLayer } from "./layers.ts";
import { isSealed, openSealed, type Secret } from "./seal/seal.ts";
import { readMetadata, type SavedState } from "./state.ts";
import type { TokenRecord } from "./tokens.ts";

/** What a snapshot must be, and how it is opened. */
export interface RestoreOptions {
  /** The tenant's salt that it was saved with. Default none. */
  readonly salt?: string;
  /** Refused unless it was made with these words around text and question. Default: its own. */
  readonly frame?: string;
  /** Refused unless it was made with this policy, parameters and all. */
  readonly policy?: Policy | string;
  /** Refused unless this was asked to stay. */
  readonly keep?: Keep | string;
  /** Refused unless it is stored like this. */
  readonly cacheType?: CacheType;
  /** Refused unless kept keys stand like this. */
  readonly positions?: Positions;
  /** Caps the cache while answering. */
  readonly maxCache?: MaxCache;
  /** Goes on beyond the trained context. Default: as it was read. */
  readonly beyondTrained?: boolean;
  /** What the snapshot was sealed, or cloaked, by. */
  readonly secret?: Secret;
  /** Keeps the rows cloaked while nobody asks; as for `openContext`. Default false. */
  readonly cloak?: boolean;
  readonly signal?: AbortSignal;
  /** Layers restored so far, of all. */
  readonly onLayer?: (done: number, layers: number) => void;
}

/** A snapshot whose header was read and checked; nothing of its sections yet. */
export interface OpenedSnapshot {
  readonly file: SnapshotFile;
  readonly identity: Identity;
  readonly state: SavedState;
  /** What it is cloaked by, if it is. */
  readonly cloak?: Cloak;
}

/** What a snapshot is opened with. */
export interface OpenWith {
  readonly runtime: Runtime;
  readonly secret?: Secret;
}

/**
 * Opens a snapshot without a model. PalisadeErrors as `openSnapshot`, `snapshot.state`, and `seal.*` and `cloak.*` where
 * it wants a secret.
 */
export async function readHeader(source: ByteSource, { runtime, secret }: OpenWith): Promise<OpenedSnapshot> {
  const file = await openSnapshot(await unsealed(source, secret), () => runtime.sha256());
  const { identity, state } = readMetadata(file.metadata, undefined, file.name);
  const cloak = await cloakOf(file.metadata, file.name, secret);
  return { file, identity, state: { ...state, lead: await maskedIds(cloak, state.lead) }, ...(cloak && { cloak }) };
}

/** A source as it was before it was sealed. @throws PalisadeError input `seal.*`. */
async function unsealed(source: ByteSource, secret?: Secret): Promise<ByteSource> {
  if (!await isSealed(source)) return source;
  if (secret) return await openSealed(source, secret);
  throw inputError(
    "seal.secret",
    `Can't open the sealed snapshot ${source.name}: pass its key file or passphrase`,
    "seal.header",
  );
}

/** See `Model.restore`. */
export async function restoreContext(model: Model, source: ByteSource, options: RestoreOptions = {}): Promise<Context> {
  let isOpen = false;
  return await lasting(model, async () => {
    try {
      const context = await restoreOnce(model, source, options);
      isOpen = true;
      return context;
    } catch (error) {
      if (!isOpen || error instanceof PalisadeError) throw error;
      const why = error instanceof Error ? error.message : String(error);
      const message = say`The device failed, and the snapshot ${source.name} can't be read again: ${why}`;
      throw resourceError("snapshot.gone", message, source.name, error);
    }
  });
}

async function restoreOnce(model: Model, source: ByteSource, options: RestoreOptions): Promise<Context> {
  const start = performance.now(), { signal, salt = "" } = options;
  signal?.throwIfAborted();
  const opened = await readHeader(source, { runtime: model.runtime, secret: options.secret });
  const frame = await checkMadeFor(model, opened, options);
  const read = await readTokens(opened, salt);
  const state = await restoreState(model, { ...opened, frame, read }, { ...options, start });
  const context = contextOf(model, state);
  return options.cloak ? await laidToRest(context) : context;
}

/**
 * Refuses a snapshot of another model, or that was made otherwise than the options say; the words around its text. What
 * takes time is compared last: the vocabulary, then the bytes of the model's file.
 * @throws PalisadeError input `snapshot.identity`, where = the first field that differs; `snapshot.state`.
 */
export async function checkMadeFor(
  model: ModelHead,
  opened: OpenedSnapshot,
  options: RestoreOptions,
): Promise<ChatFrame> {
  const frame = frameFor(model, opened, options), head = { ...model, frame }, { salt = "", signal } = options;
  const { tokenizer, model: bytes } = opened.identity;
  for (const known of [{ tokenizer, model: bytes }, { model: bytes }, {}]) {
    signal?.throwIfAborted();
    refuseOther(opened, await modelIdentity(head, salt, signal, known), options);
  }
  return frame;
}

/** The model's own frame, with the snapshot's words and day. */
function frameFor(model: ModelHead, { file, state }: OpenedSnapshot, { frame: asked }: RestoreOptions): ChatFrame {
  const { name, text } = state.frame, day = state.date === undefined ? {} : { date: state.date };
  if (asked !== undefined) return { ...withWords(model.frame, asked), ...day };
  if (name === NO_FRAME) return { ...withWords(model.frame, NO_FRAME), ...day };
  if (frameText(model.frame.words) === text) return { ...model.frame, ...day };
  try {
    const framed = withWords(model.frame, text);
    return { ...framed, words: { ...framed.words, name }, ...day };
  } catch (error) {
    throw refuse("state", file.name, "header", `it has words around the text that are none: ${text}`, error);
  }
}

/** @throws PalisadeError input `snapshot.identity`, where = the first field that differs. */
function refuseOther({ file, identity }: OpenedSnapshot, model: ModelIdentity, options: RestoreOptions): void {
  const { policy: named, keep, cacheType, positions } = options;
  const policy = typeof named === "string" ? resolvePolicy(named) : named;
  const asked: Partial<Identity> = {
    ...model,
    ...(policy && policyIdentity(policy)),
    ...(keep !== undefined && { budget: budgetWords({ keep: typeof keep === "string" ? parseKeep(keep) : keep }) }),
    ...(cacheType && { cacheType }),
    ...(positions && { positions }),
  };
  const difference = firstDifference(identity, asked);
  if (difference) throw refuseDifference(file.name, difference);
}

/** The tokens that were read: hashes of prefixes, and the ids where they were kept. */
export async function readTokens({ file, state, cloak }: OpenedSnapshot, salt: string): Promise<TokenRecord> {
  const fail = (reason: string) => refuse("layout", file.name, "prefixes", `section prefixes: ${reason}`);
  const [lengths, hashes] = ["lengths", "hashes"].map((name) => file.layout("prefixes").get(name)?.shape ?? []);
  if (`${hashes}` !== `${lengths[0]},32` || file.layout("prefixes").size !== 2) throw fail("want lengths and hashes");
  const tensors = await file.read("prefixes"), ends = [...new Int32Array(tensors.get("lengths")!.bytes.buffer)];
  const ascends = ends.every((end, i) => end > (i === 0 ? 0 : ends[i - 1]));
  if (!ascends || ends.at(-1) !== state.tokens) throw fail("lengths don't ascend to the number of tokens");
  const hex = [...await masked(cloak, MASKS.prefixes, tensors.get("hashes")!.bytes)].map((byte) =>
    byte.toString(16).padStart(2, "0")
  ).join("");
  const ids = file.sections.includes("text") ? await readText(file, state.tokens, cloak) : undefined;
  return {
    count: state.tokens,
    salt,
    lengths: ends,
    hashes: ends.map((_, i) => hex.slice(64 * i, 64 * i + 64)),
    ...(ids && { ids }),
  };
}

async function readText(file: SnapshotFile, tokens: number, cloak?: Cloak): Promise<number[]> {
  const shape = file.layout("text").get("ids")?.shape;
  if (`${shape}` !== `${tokens}`) throw refuse("layout", file.name, "text", `section text: want ${tokens} ids`);
  return [...new Int32Array((await masked(cloak, MASKS.text, (await file.read("text")).get("ids")!.bytes)).buffer)];
}

/** What is known of a snapshot that may be used. */
export interface AcceptedSnapshot extends OpenedSnapshot {
  readonly frame: ChatFrame;
  readonly read: TokenRecord;
}

/** Reads all layers into a cache of their own. Nothing is left of it when anything fails. */
export async function restoreState(
  model: Model,
  accepted: AcceptedSnapshot,
  options: Pick<RestoreOptions, "maxCache" | "beyondTrained" | "signal" | "onLayer"> & { readonly start: number },
): Promise<ContextState> {
  const { file, identity, state, frame, read, cloak } = accepted, { config, backend } = model;
  const policy = savedPolicy(state, file.name), type = savedType(identity, file.name);
  const expected = new Set(["prefixes", "text", ...Array.from({ length: config.layers }, (_, l) => `layer.${l}`)]);
  const odd = file.sections.find((name) => !expected.has(name));
  if (odd) throw refuse("layout", file.name, odd, `nobody knows what section ${odd} is`);
  const { budget, way } = identity,
    facts = { policy, cacheType: type, budget, way, files: savedFiles(identity, file.name) };
  // What stays may be stored otherwise than it was read.
  const rows = policy.stages?.rows ?? type;
  checkRowsOf(backend, rows, policy);
  const cache = new RaggedCache(backend, config, rows);
  try {
    const { predicted, certificates } = await fillCache(cache, file, { state, cloak }, options);
    const plan = await planFor(model, { ...accepted, predicted }, options);
    return {
      ...{ cache, policy, frame, plan, read, predicted, certificates },
      budget: { ...state.budget, model: globalShape(config) },
      tokens: state.tokens,
      reused: state.tokens,
      replaced: state.replaced,
      activationBytes: 0,
      ms: { prefill: 0, evict: 0, restore: performance.now() - options.start },
      keepCapped: state.keepCapped,
      leastKept: state.leastKept,
      frameTokens: state.frameTokens,
      risk: state.risk,
      ...state.done,
      label: state.label,
      cost: state.ms,
      left: state.left,
      facts: () => Promise.resolve({ ...facts, positions: plan.positions }),
    };
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
}

/** What stands beside the cache. */
interface FilledExtras {
  readonly predicted?: readonly Float32Array[];
  readonly certificates?: readonly LayerCertificate[];
}

async function fillCache(
  cache: RaggedCache,
  file: SnapshotFile,
  { state, cloak }: Pick<OpenedSnapshot, "state" | "cloak">,
  { signal, onLayer }: Pick<RestoreOptions, "signal" | "onLayer">,
): Promise<FilledExtras> {
  const { shape, type } = cache, logical: Int32Array[][] = [];
  const predicted: Float32Array[] = [], certificates: LayerCertificate[] = [];
  for (let layer = 0; layer < shape.layers; layer++) {
    await breathe(signal);
    const saved = await readLayer(file, layer, { shape, type, tokens: state.tokens, cloak });
    const { positions, keys, values, bias, packed } = saved;
    if (bias) checkRefit("both", cache.backend);
    const rowsOf = (head: number) => ({ keys: keys[head], values: values[head], packed: packed?.[head] });
    cache.fill(layer, positions.map((each, head) => ({ positions: each, ...rowsOf(head), bias: bias?.[head] })));
    saved.reduced?.forEach((head, kvHead) => reduceHead(cache, layer, kvHead, head));
    if (saved.logical) logical.push([...saved.logical]);
    if (saved.predicted) predicted.push(...saved.predicted);
    if (saved.certificate) certificates.push(saved.certificate);
    onLayer?.(layer + 1, shape.layers);
  }
  const all = <T>(list: T[], wanted: number, what: string): T[] | undefined => {
    if (list.length === wanted) return list;
    if (list.length === 0) return undefined;
    throw refuse("layout", file.name, "header", `only some layers have ${what}`);
  };
  cache.resume(state.position, state.seen, all(logical, shape.layers, "logical positions"));
  return {
    predicted: all(predicted, cache.globals.length * shape.kvHeads, "scores"),
    certificates: all(certificates, cache.globals.length, "certificates"),
  };
}

/** @throws PalisadeError input `snapshot.backend` where this backend holds whole keys alone. */
function reduceHead(cache: RaggedCache, layer: number, kvHead: number, { thin, foresight }: ReducedHead): void {
  if (!thin && !foresight) return;
  if (!cache.backend.reduces) {
    const message = say`It holds keys with channels left out, which the ${cache.backend.name} backend can't: take ${
      option("backend")
    } wasm`;
    throw inputError("snapshot.backend", message, option("backend"));
  }
  if (thin) {
    const recent = cache.length(layer, kvHead) - thin.rows;
    cache.thin(layer, kvHead, { channels: thin.channels, recent });
  }
  if (foresight) cache.foresee(layer, kvHead, foresight);
}

/** How it decodes: as it was read, under a cap where one is asked for. */
async function planFor(
  model: Model,
  { file, identity, state, frame, predicted }: AcceptedSnapshot & FilledExtras,
  { maxCache, beyondTrained = state.beyondTrained }: Pick<RestoreOptions, "maxCache" | "beyondTrained">,
): Promise<DecodePlan> {
  const { positions } = identity;
  if (positions !== "true" && positions !== "rerotate") {
    throw refuse("state", file.name, "header", `it has positions of a kind that nobody knows: ${positions}`);
  }
  const cap = maxCache && resolveMaxCache(maxCache, { ...model, frame }, state.markers.length);
  const plan: DecodePlan = {
    ...{ positions, beyondTrained, markers: state.markers },
    ...(cap && { maxCache: cap }),
    ...(state.lead.length > 0 && { lead: state.lead }),
  };
  if (!cap?.rule.predicted) return plan;
  if (!predicted) {
    const message =
      `${file.name} has none of the gate's scores, which the rule ${cap.rule.name} goes by: read the text anew`;
    throw inputError("snapshot.no-scores", message, option("maxCache.rule"));
  }
  return withPredictions(plan, await gateScorer(model), predicted);
}

function savedPolicy({ policy }: SavedState, file: string): Policy {
  try {
    return resolvePolicy(policy);
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
    throw refuse("state", file, "header", `it was made by a policy that nobody knows: ${error.message}`, error);
  }
}

function savedFiles({ files }: Identity, file: string): Record<string, string> {
  try {
    return Object.fromEntries(JSON.parse(files));
  } catch (error) {
    throw refuse("state", file, "header", "its list of the policy's files is none", error);
  }
}

function savedType({ cacheType }: Identity, file: string): CacheType {
  const known = ALL_CACHE_TYPES.find((each) => each === cacheType);
  if (known) return known;
  throw refuse("state", file, "header", `its rows are of a type that nobody knows: ${cacheType}`);
}
