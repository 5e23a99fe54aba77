/**
 * The refitting stage of a reading, behind any selection: when a layer's entries are final, each of its KV heads is
 * refitted by the layer's references (`core/refit/refit.ts`). Where layers compete that is after the last layer.
 */
import { inputError, option, say } from "../../core/errors.ts";
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { pursueHead } from "../../core/refit/pursuit.ts";
import { type Refit, refitHead, REFITS, type RefitSettings } from "../../core/refit/refit.ts";
import { indicesIn, type WideHead } from "../../core/select/wide.ts";
import { breathe } from "../../runtime/breathe.ts";
import { algebraOf } from "../gate/fit/algebra.ts";
import { type LayerReferences, ofKvHead, referenceBytes } from "./references.ts";

/** Tokens whose queries a refit goes by, all query heads of each. Measured: bench/results/refit.md. */
export const REFERENCE_TOKENS = 384;

/** What a refit did. */
export interface RefitFigures {
  readonly refit: Refit;
  /** Tokens whose queries it went by. */
  readonly tokens: number;
  /** KV heads that were refitted, and all that lost entries. */
  readonly heads: number;
  readonly of: number;
  /** Mean over the refitted heads of the worst held-out error, before and after, relative to the mean output. */
  readonly before: number;
  readonly after: number;
  readonly ms: number;
  /** KV heads that keep other entries than the policy's, where a pursuit was asked for. */
  readonly pursued?: number;
}

/**
 * Refuses what is no refit, or what a backend can't add.
 * @throws PalisadeError input `refit.unknown`, `refit.backend`.
 */
export function checkRefit(refit: string, backend: Pick<Backend, "refits" | "name">): Refit {
  const known = REFITS.find((each) => each === refit);
  if (!known) {
    throw inputError("refit.unknown", `There is no refit "${refit}": want ${REFITS.join(", ")}`, option("refit"));
  }
  if (known !== "none" && !backend.refits) {
    const message = say`The ${backend.name} backend adds no biases to attention, which a refit needs: take ${
      option("backend")
    } wasm`;
    throw inputError("refit.backend", message, option("refit"));
  }
  return known;
}

/** Refits a cache layer by layer, in any order, once each. */
export class RefitStage {
  readonly #cache: RaggedCache;
  readonly #settings: RefitSettings;
  readonly #waiting = new Map<number, LayerReferences>();
  #tokens = 0;
  #heads = 0;
  #of = 0;
  #before = 0;
  #after = 0;
  #ms = 0;
  #pursued = 0;

  constructor(cache: RaggedCache, settings: RefitSettings) {
    this.#cache = cache;
    const { backend } = cache;
    this.#settings = { algebra: algebraOf(backend), ...settings };
  }

  /** Bytes of the references that wait. */
  get waitingBytes(): number {
    return [...this.#waiting.values()].reduce((sum, each) => sum + referenceBytes(each), 0);
  }

  /** Takes the references of a layer whose entries may still go. */
  add(layer: number, references: LayerReferences): void {
    this.#waiting.set(layer, references);
  }

  /**
   * What stays of each head of a layer whose references wait: ascending indices into `rows`, which hold the head's candidates
   * at `at`.
   */
  async pursue(
    layer: number,
    rows: LayerRows,
    heads: readonly WideHead[],
    at: (head: WideHead) => Int32Array | undefined,
    { signal, now = () => performance.now() }: { signal?: AbortSignal; now?: () => number },
  ): Promise<Int32Array[]> {
    const start = now(), kept: Int32Array[] = [], references = this.#waiting.get(layer)!;
    for (const [head, each] of heads.entries()) {
      signal?.throwIfAborted();
      await breathe();
      const policy = indicesIn(each.wide, each.policy);
      const choice = { policy, protectedRows: indicesIn(each.wide, each.protectedEntries) };
      const candidates = await rows.copyRows(head, at(each)), of = ofKvHead(references, rows.shape, head);
      const pursued = pursueHead(candidates, of, rows.shape.headDim, choice, this.#settings);
      if (pursued.rows !== policy) this.#pursued++;
      kept.push(pursued.rows);
    }
    this.#ms += now() - start;
    return kept;
  }

  /** Refits all layers that wait: their entries are final. `length`: tokens of the context. */
  async run(length: number, { signal, now = () => performance.now() }: { signal?: AbortSignal; now?: () => number }) {
    const start = now();
    for (const [layer, references] of this.#waiting) {
      this.#tokens = references.tokens;
      for (let head = 0; head < this.#cache.shape.kvHeads; head++) {
        signal?.throwIfAborted();
        await breathe();
        if (this.#cache.length(layer, head) < length) await this.#head(layer, head, references);
      }
      this.#waiting.delete(layer);
    }
    this.#ms += now() - start;
  }

  async #head(layer: number, head: number, of: LayerReferences): Promise<void> {
    const { shape } = this.#cache;
    if (this.#cache.length(layer, head) === 0) return;
    this.#of++;
    const rows = this.#cache.rows(layer), references = ofKvHead(of, rows.shape, head);
    const refitted = refitHead(await rows.copyRows(head), references, shape.headDim, this.#settings);
    if (!refitted) return;
    this.#cache.refit(layer, head, refitted);
    this.#heads++;
    this.#before += refitted.before;
    this.#after += refitted.after;
  }

  figures(): RefitFigures {
    const mean = (sum: number) => this.#heads === 0 ? 0 : sum / this.#heads;
    return {
      refit: this.#settings.refit,
      tokens: this.#tokens,
      heads: this.#heads,
      of: this.#of,
      before: mean(this.#before),
      after: mean(this.#after),
      ms: this.#ms,
      ...(this.#settings.refit === "pursuit" && { pursued: this.#pursued }),
    };
  }
}
