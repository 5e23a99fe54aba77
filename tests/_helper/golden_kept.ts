/** The published kept sets of the tiny models, through a backend. Imports nothing of a runtime: it also runs in a page. */
import type { Backend } from "../../core/backend/interface.ts";
import { parseSafetensors } from "./safetensors.ts";
import { evictThrough, GOLDEN_POLICIES, TINY_SHAPE, tinyLayers } from "./tiny.ts";
import { compareKept } from "./top_n.ts";

/** Every published policy keeps the published set. `read`: the bytes of a golden file by its name. */
export async function goldenKept(
  backend: Backend<Float32Array>,
  lengths: readonly number[],
  read: (name: string) => Promise<Uint8Array>,
): Promise<void> {
  for (const length of lengths) {
    const tensors = parseSafetensors(await read(`tiny-L${length}.safetensors`)), layers = tinyLayers(tensors, length);
    const json = new TextDecoder().decode(await read(`tiny-L${length}.kept.json`));
    const { kept }: { kept: Record<string, Record<string, number[][][]>> } = JSON.parse(json);
    for (const r of Object.keys(kept)) {
      for (const [golden, policy] of Object.entries(GOLDEN_POLICIES)) {
        const evicted = await evictThrough(backend, policy, { ratio: Number(r) }, TINY_SHAPE, layers);
        const theirs = tensors.get(`scores/${golden}/${r}`);
        compareKept(evicted, kept[r][golden], theirs, { name: golden, r, length });
      }
    }
  }
}
