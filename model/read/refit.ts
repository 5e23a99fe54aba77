/**
 * The refitting stage of a reading, behind any selection: when a layer's entries are final, each of its KV heads is
 * refitted by the layer's references (`core/refit/refit.ts`). Where layers compete that is after the last layer.
 */
import { inputError, option, say } from "../../core/errors.ts";
import type { Backend, CopiedRows, LayerRows } from "../../core/backend/interface.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { pursueHead } from "../../core/refit/pursuit.ts";
import { type KeptRows, type Refit, refitHead, REFITS, type RefitSettings } from "../../core/refit/refit.ts";
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

/** A head to refit. */
interface Due {
  readonly layer: number;
  readonly head: number;
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
    const start = now(), heads = this.#due(length);
    // One head ahead: what comes from a device is waited for while another head is fitted.
    let ahead = this.#copy(heads[0]);
    for (const [i, each] of heads.entries()) {
      signal?.throwIfAborted();
      await breathe();
      const kept = await ahead;
      ahead = this.#copy(heads[i + 1]);
      this.#fit(each, kept!);
      if (heads[i + 1]?.layer !== each.layer) this.#waiting.delete(each.layer);
    }
    this.#waiting.clear();
    this.#ms += now() - start;
  }

  /** The heads that lost entries, and kept some. */
  #due(length: number): Due[] {
    const heads: Due[] = [];
    for (const [layer, { tokens }] of this.#waiting) {
      this.#tokens = tokens;
      for (let head = 0; head < this.#cache.shape.kvHeads; head++) {
        const kept = this.#cache.length(layer, head);
        if (kept > 0 && kept < length) heads.push({ layer, head });
      }
    }
    return heads;
  }

  #copy(due: Due | undefined): Promise<CopiedRows> | undefined {
    const copy = due && this.#cache.rows(due.layer).copyRows(due.head);
    // Whoever waits for it hears of its failure; after another one nobody does.
    copy?.catch(() => {});
    return copy;
  }

  #fit({ layer, head }: Due, kept: KeptRows): void {
    const { shape } = this.#cache, of = ofKvHead(this.#waiting.get(layer)!, this.#cache.rows(layer).shape, head);
    this.#of++;
    const refitted = refitHead(kept, of, shape.headDim, this.#settings);
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
