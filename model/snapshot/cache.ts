/**
 * A cache of snapshots in a store: what was read before is found by itself, exactly or not at all. Never more bytes than
 * it may have: before a snapshot is put there, those that were not used for longest go.
 *
 * Of several that fit, the one wins of which most tokens are verified. One of all of a text is used as it is; one of its
 * beginning where the rest can be read behind it (`model/read/append.ts`).
 */
import { PalisadeError } from "../../core/errors.ts";
import { type Context, insideOf } from "../context.ts";
import type { Model } from "../model.ts";
import { snapshotBytes } from "./format.ts";
import {
  differenceText,
  firstDifference,
  firstWay,
  type Identity,
  IDENTITY_FIELDS,
  learnedAs,
  modelIdentity,
  type ReadingFacts,
  readingIdentity,
  snapshotKey,
} from "./identity.ts";
import { type OpenedSnapshot, readHeader, readTokens } from "./restore.ts";
import { partsOf, type SaveOptions, writeParts } from "./save.ts";
import { sealedSize, type Secret } from "./seal/seal.ts";
import { type SnapshotInfo, type SnapshotStore, type StoreOptions, storeSink, storeSource } from "./store.ts";
import { matchOf, recordOf, type TokenRecord, tokensHash } from "./tokens.ts";

/** Texts of fewer tokens are read as quickly as looked up. */
export const LEAST_TOKENS = 256;
/** Bytes that a cache may have when nothing is said: 1 GiB. */
export const CACHE_BYTES = 2 ** 30;

/** How much a cache of snapshots holds. */
export interface SnapshotCacheOptions {
  /** Most bytes of all its snapshots. Default {@link CACHE_BYTES}. */
  readonly maxBytes?: number;
  /** Tokens of a text that it is worth it for. Default {@link LEAST_TOKENS}. */
  readonly leastTokens?: number;
}

/** What is looked for. */
export interface Wanted {
  readonly facts: ReadingFacts;
  readonly ids: readonly number[];
  readonly salt: string;
  /** The gate's scores must be in it. */
  readonly predicted: boolean;
  /** Certificates must be in it. */
  readonly certificates: boolean;
  /**
   * What the gate that `self-gate` begins with has grown from, where that is what earlier texts left; undefined where the
   * caller said what it begins with.
   */
  readonly grown?: readonly string[];
  /** Why the rest of a text can't be read behind its beginning; undefined when it can. */
  readonly cannotGoOn?: string;
  /** Last tokens of a beginning that would be read again; all of it must be used where that can't be. */
  readonly again: number | "never";
  /** Entries per head of a budget that doesn't grow with the text. */
  readonly fixed?: number;
  /** What sealed or cloaked ones are opened by; without it they are passed over. */
  readonly secret?: Secret;
  readonly signal?: AbortSignal;
}

/** A snapshot that may be used. */
export interface Found extends OpenedSnapshot {
  readonly name: string;
  readonly read: TokenRecord;
  /** Tokens from the beginning on whose entries may be used: all that were read, or those before what is read again. */
  readonly tokens: number;
}

export type Search = { readonly found: Found } | { readonly missed: string };

/** A snapshot that does not fit, and how nearly it does. */
interface Miss {
  readonly nearness: number;
  readonly reason: string;
}

/** Snapshots kept for texts that come again, the least used leaving first. */
export class SnapshotCache {
  readonly store: SnapshotStore;
  readonly maxBytes: number;
  readonly #leastTokens: number;

  constructor(store: SnapshotStore, { maxBytes = CACHE_BYTES, leastTokens = LEAST_TOKENS }: SnapshotCacheOptions = {}) {
    this.store = store;
    this.maxBytes = maxBytes;
    this.#leastTokens = leastTokens;
  }

  /** Looks for a snapshot to use instead of reading. What can't be read is passed over. */
  async find(model: Model, wanted: Wanted): Promise<Search> {
    const { ids, salt, facts, signal } = wanted;
    if (ids.length < this.#leastTokens) {
      return { missed: `a text of ${ids.length} tokens is read at once; from ${this.#leastTokens} on they are kept` };
    }
    const listed = await this.store.list("", { signal });
    if (listed.length === 0) return { missed: "no snapshots are kept yet" };
    const identity: Identity = { ...await modelIdentity(model, salt, signal), ...readingIdentity(facts) };
    const key = snapshotKey(identity, tokensHash(recordOf(ids, salt)));
    // The one that has the name of exactly this comes first, and nothing can be better.
    const order = listed.sort((a, b) => Number(b.name === key) - Number(a.name === key));
    let best: Found | undefined, nearest: Miss = { nearness: -1, reason: "none can be read" };
    for (const { name } of order) {
      signal?.throwIfAborted();
      const looked = await this.#look(name, model, identity, wanted);
      if ("reason" in looked) nearest = looked.nearness > nearest.nearness ? looked : nearest;
      else if (!best || looked.tokens > best.tokens) best = looked;
      if (best?.tokens === ids.length) break;
    }
    if (!best) return { missed: nearest.reason };
    await this.store.touch?.(best.name, { signal });
    return { found: best };
  }

  async #look(name: string, model: Model, identity: Identity, { secret, ...wanted }: Wanted): Promise<Found | Miss> {
    try {
      const opened = await readHeader(await storeSource(this.store, name, wanted), { runtime: model.runtime, secret });
      const unfit = whyUnfit(opened, identity, wanted);
      if (unfit) return { ...unfit, reason: `${titleOf(name, opened)}: ${unfit.reason}` };
      const read = await readTokens(opened, wanted.salt),
        match = matchedTokens(read, opened.state.budget, wanted);
      if ("tokens" in match) return { ...opened, name, read, tokens: match.tokens };
      return { nearness: IDENTITY_FIELDS.length + 1 + match.same, reason: `${titleOf(name, opened)}: ${match.reason}` };
    } catch (error) {
      if (!(error instanceof PalisadeError)) throw error;
      return { nearness: 0, reason: error.message };
    }
  }

  /**
   * Keeps a context, unless the cache has it or it is too large or too short for it; the name it has there. Those not
   * used for longest go first, so that the cache never has more than its bytes.
   */
  async keep(context: Context, options: SaveOptions = {}): Promise<string | undefined> {
    const { model, state, awake } = insideOf(context);
    if (state.tokens < this.#leastTokens) return undefined;
    const parts = await partsOf(model, state, options), plain = snapshotBytes(parts.metadata, parts.sections);
    const name = snapshotKey(parts.identity, tokensHash(state.read)),
      bytes = options.encrypt ? sealedSize(plain) : plain;
    if (bytes > this.maxBytes) return undefined;
    await this.prune(this.maxBytes - bytes, name, options);
    await awake(() => writeParts(model, parts, storeSink(this.store, name, options), options));
    return name;
  }

  /**
   * Removes those not used for longest until the rest takes `bytes` or less; `replaced` counts as gone. An abort leaves
   * the rest as they are.
   */
  async prune(
    bytes = this.maxBytes,
    replaced?: string,
    { signal }: StoreOptions = {},
  ): Promise<SnapshotInfo[]> {
    const kept = (await this.store.list("", { signal })).filter(({ name }) => name !== replaced).sort((a, b) =>
      a.used - b.used
    );
    let held = kept.reduce((sum, { size }) => sum + size, 0);
    const removed: SnapshotInfo[] = [];
    for (const info of kept) {
      if (held <= bytes) break;
      await this.store.delete(info.name, { signal });
      held -= info.size;
      removed.push(info);
    }
    return removed;
  }
}

function titleOf(name: string, { state }: OpenedSnapshot): string {
  return `snapshot ${name.slice(0, 8)}${state.label === "" ? "" : ` of ${state.label}`}`;
}

/** The first thing but the tokens that is otherwise. */
function whyUnfit({ file, identity, state }: OpenedSnapshot, asked: Identity, wanted: Wanted): Miss | undefined {
  // What its reading left, and what grew from that, is no other beginning: the text is a part of it already.
  const isPart = state.left !== undefined && wanted.grown?.includes(state.left);
  const files = isPart ? learnedAs(identity.files, asked.files) : identity.files;
  const difference = firstDifference({ ...identity, files, way: firstWay(identity.way) }, asked);
  if (difference) {
    return { nearness: IDENTITY_FIELDS.indexOf(difference.field), reason: differenceText(difference) };
  }
  const layer = file.layout("layer.0"),
    lacks = (what: string) => ({ nearness: IDENTITY_FIELDS.length, reason: `it has no ${what}` });
  if (wanted.predicted && !layer.has("predicted")) return lacks("scores of the gate");
  return wanted.certificates && !layer.has("certificate_counts") ? lacks("certificates") : undefined;
}

/** How many of its tokens may be used, or why none; `budget`: what it was kept by. */
export function matchedTokens(
  read: TokenRecord,
  budget: { readonly window: number; readonly perHead: number },
  wanted: Omit<Wanted, "facts" | "salt" | "predicted">,
) {
  const { ids, cannotGoOn, again, certificates, fixed } = wanted, { same, differs } = matchOf(read, ids);
  if (differs === undefined && read.count === ids.length) return { tokens: read.count };
  // What is verified up to a length is verified up to any shorter one. The window is judged again, with what follows it.
  const tokens = again === "never" ? same : Math.min(same, read.count - Math.max(again, budget.window));
  const refuse = (reason: string) => ({ same, reason });
  if (tokens < 1 || tokens >= ids.length || tokens < read.count / 2) {
    return refuse(differs ?? "the text ends where it does, or before");
  }
  if (cannotGoOn) return refuse(`it is of the text's beginning, and ${cannotGoOn}`);
  if (again === "never" && tokens < read.count) {
    return refuse(`${differs}, and layers that look back over a window have let go of what comes before its end`);
  }
  if (fixed !== undefined && fixed < ids.length && fixed <= budget.perHead) {
    return refuse(`it is of the text's beginning, which has all of the ${fixed} entries per head that are to stay`);
  }
  return certificates ? refuse("it is of the text's beginning, and certificates are of a whole reading") : { tokens };
}
