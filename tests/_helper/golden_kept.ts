/** The published kept sets of the tiny models, through a backend. */
import type { Backend } from "../../core/backend/interface.ts";
import { readJson, readSafetensors } from "./golden.ts";
import { evictThrough, GOLDEN_POLICIES, TINY_LENGTHS, TINY_SHAPE, tinyLayers } from "./tiny.ts";
import { compareKept } from "./top_n.ts";

/** Every published policy keeps the published set, but for entries next to the boundary (`compareKept`). */
export async function goldenKept(backend: Backend<Float32Array>, lengths = TINY_LENGTHS): Promise<void> {
  for (const length of lengths) {
    const tensors = await readSafetensors(`tiny-L${length}.safetensors`);
    const layers = tinyLayers(tensors, length);
    const { kept } = await readJson<{ kept: Record<string, Record<string, number[][][]>> }>(
      `tiny-L${length}.kept.json`,
    );
    for (const r of Object.keys(kept)) {
      for (const [golden, policy] of Object.entries(GOLDEN_POLICIES)) {
        const evicted = await evictThrough(backend, policy, { ratio: Number(r) }, TINY_SHAPE, layers);
        const theirs = tensors.get(`scores/${golden}/${r}`);
        compareKept(evicted, kept[r][golden], theirs, { name: golden, r, length });
      }
    }
  }
}
