/** For policies whose scores tie at the boundary, where every implementation may choose: sets are checked by score. */
import assert from "node:assert/strict";
import type { Tensor } from "./safetensors.ts";

/** Golden policies that tie: equal tokens have equal norms, and sinks and last chunk of lagkv all score 1. */
export const TIED: readonly string[] = ["knorm", "lagkv"];

/** What the golden README allows between the lowest kept and the highest evicted score. */
const SLACK = 2e-6;

/** Fails unless `kept`, positions of one head, is a top n of `scores`, `[L]`, up to `slack`. */
export function assertTopN(kept: ArrayLike<number>, scores: ArrayLike<number>, what: string, slack = SLACK): void {
  const mine = new Set(Array.from(kept));
  let lowest = Infinity, highest = -Infinity;
  for (let i = 0; i < scores.length; i++) {
    if (mine.has(i)) lowest = Math.min(lowest, scores[i]);
    else highest = Math.max(highest, scores[i]);
  }
  assert.ok(lowest >= highest - slack, `${what}: keeps ${lowest}, evicts ${highest}`);
}

export interface Evicted {
  readonly kept: readonly Int32Array[][];
  readonly scores: readonly Float32Array[];
}

/** Which golden set it is. */
export interface GoldenCase {
  readonly name: string;
  readonly r: string;
  readonly length: number;
}

/** Fails unless the kept sets are the published ones, `[layer][kvHead]`: to the index; where scores tie, each set has to be a top n of the other's. */
export function compareKept(
  { kept, scores }: Evicted,
  golden: number[][][],
  theirs: Tensor | undefined,
  at: GoldenCase,
): void {
  const what = `${at.name} at r ${at.r}`;
  if (!TIED.includes(at.name) || (at.name === "lagkv" && at.length === 97)) {
    assert.deepEqual(kept.map((heads) => heads.map((head) => [...head])), golden, what);
    return;
  }
  kept.forEach((heads, layer) =>
    heads.forEach((head, h) => {
      const row = (all: Float32Array, first: number) =>
        all.subarray((first + h) * at.length, (first + h + 1) * at.length);
      assert.equal(head.length, golden[layer][h].length, what);
      assertTopN(golden[layer][h], row(scores[layer], 0), `${what}, theirs by our scores`);
      assertTopN(head, row(theirs!.data, layer * heads.length), `${what}, ours by their scores`);
    })
  );
}
