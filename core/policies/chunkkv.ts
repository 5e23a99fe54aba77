/**
 * Whole chunks of neighbouring tokens by any scorer's scores, so that phrases stay in one piece. ChunkKV, Liu et al.
 * 2025, arXiv 2502.00299.
 *
 * The score of a chunk of `chunk` tokens is the mean of its entries' scores, summed over the KV heads of the layer, so
 * all heads keep the same chunks. Only the scorer's scores and counts are taken over. Ours differs from the published
 * code: entries the scorer protects stay out of their chunk's mean (or the window would drag its neighbours in); the
 * budget is met exactly, the last chunk being cut to its best entries; the published code keeps whole chunks only, one
 * at least, and so misses its budget by up to a chunk.
 */
import { defineWrapper } from "../policy/define.ts";
import type { LayerScores, PolicyAbout } from "../policy/policy.ts";

export const chunkkv = defineWrapper({
  name: "chunkkv",
  parameters: [{ name: "chunk", type: "integer", default: 20, min: 1, max: 65536 }],
  over: "snapkv",
  allocate: { kind: "head" },
  rescore: (layer, _, { length }, { chunk }) => inChunks(layer, length, chunk),
});

export const about: PolicyAbout = {
  summary: "Any scorer's scores, neighbouring tokens kept or evicted together",
  paper: "Liu et al. 2025, arXiv 2502.00299",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/chunkkv_press.py",
  help: {
    chunk: "tokens of a chunk",
  },
};

/** Chunk scores for every entry, `[kvHeads, L]`; inside a chunk the scorer's own score decides. */
function inChunks({ scores, protectedEntries, counts }: LayerScores, length: number, chunk: number): LayerScores {
  const chunked = new Float32Array(scores.length);
  for (let start = 0; start < length; start += chunk) {
    const end = Math.min(start + chunk, length);
    let total = 0;
    for (let head = 0; head < scores.length; head += length) total += meanOf(head + start, head + end);
    for (let head = 0; head < scores.length; head += length) chunked.fill(total, head + start, head + end);
  }
  return { scores: chunked, second: scores, protectedEntries, counts };

  function meanOf(from: number, to: number): number {
    let sum = 0, count = 0;
    for (let at = from; at < to; at++) {
      if (protectedEntries?.[at]) continue;
      sum += scores[at];
      count++;
    }
    return count === 0 ? 0 : sum / count;
  }
}
