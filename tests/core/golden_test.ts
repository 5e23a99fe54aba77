import assert from "node:assert/strict";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { evictDump } from "../../core/dump/evict.ts";
import { readJson, readSafetensors } from "../_helper/golden.ts";
import type { Tensor } from "../_helper/safetensors.ts";
import { compareKept } from "../_helper/top_n.ts";
import { evictThrough, GOLDEN_POLICIES, TINY_LENGTHS, TINY_SHAPE, tinyLayers } from "../_helper/tiny.ts";

/** `kept[r][policy][layer][kvHead]`. */
type GoldenKept = Record<string, Record<string, number[][][]>>;

/** Float32 scores of another implementation, sums in another order. */
const SCORE_TOLERANCE = 1e-5;

for (const length of TINY_LENGTHS) {
  const tensors = await readSafetensors(`tiny-L${length}.safetensors`);
  const { kept } = await readJson<{ kept: GoldenKept }>(`tiny-L${length}.kept.json`);
  const layers = tinyLayers(tensors, length);

  Deno.test(`evictDump() keeps the published sets of tiny-L${length} to the index`, () => {
    forEachGolden(kept, (r, name, policy) => {
      const evicted = evictDump(policy, { ratio: Number(r) }, TINY_SHAPE, layers);
      compareKept(evicted, kept[r][name], tensors.get(`scores/${name}/${r}`), { name, r, length });
    });
  });

  Deno.test(`evictDump() gives the published scores of tiny-L${length} within 1e-5`, () => {
    const compared = forEachGolden(kept, (r, name, policy) => {
      const golden = tensors.get(`scores/${name}/${r}`);
      if (!golden) return false; // wrappers have no scores of their own
      compareScores(evictDump(policy, { ratio: Number(r) }, TINY_SHAPE, layers).scores, golden, `${name} at r ${r}`);
    });
    assert.equal(compared, 10 * Object.keys(kept).length);
  });

  Deno.test(`the ts backend measures and selects the published sets of tiny-L${length}`, async () => {
    using backend = createReferenceBackend();
    for (const r of Object.keys(kept)) {
      for (const [name, policy] of Object.entries(GOLDEN_POLICIES)) {
        const evicted = await evictThrough(backend, policy, { ratio: Number(r) }, TINY_SHAPE, layers);
        const golden = tensors.get(`scores/${name}/${r}`);
        compareKept(evicted, kept[r][name], golden, { name, r, length });
        if (golden) compareScores(evicted.scores, golden, `${name} at r ${r}`);
      }
    }
    assert.equal(backend.memory().allocatedBytes, 0);
  });
}

/** Calls `check` for each ratio and golden policy; returns how many did not answer false. */
function forEachGolden(kept: GoldenKept, check: (r: string, name: string, policy: string) => boolean | void): number {
  let checked = 0;
  for (const r of Object.keys(kept)) {
    for (const [name, policy] of Object.entries(GOLDEN_POLICIES)) {
      if (check(r, name, policy) !== false) checked++;
    }
  }
  return checked;
}

function compareScores(scores: readonly Float32Array[], golden: Tensor, what: string): void {
  const [layers, kvHeads, length] = golden.shape;
  let worst = 0;
  for (let layer = 0; layer < layers; layer++) {
    for (let i = 0; i < kvHeads * length; i++) {
      worst = Math.max(worst, Math.abs(scores[layer][i] - golden.data[layer * kvHeads * length + i]));
    }
  }
  // lagkv's scores are ranks.
  assert.ok(worst <= (what.startsWith("lagkv") ? 0 : SCORE_TOLERANCE), `${what}: scores differ by ${worst}`);
}
