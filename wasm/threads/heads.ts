/** Which KV heads a thread has, and how their numbers are cut out of those of all heads, and put back. */
import { HOST_TENSORS, type Tensors } from "../../core/backend/tensor.ts";
import { concatenate } from "../../core/concatenate.ts";
import type { AttentionShape } from "../../core/shape.ts";

/** KV heads from `first` on. */
export interface HeadRun {
  readonly first: number;
  readonly kvHeads: number;
}

/** The heads of one thread. */
export interface Part extends HeadRun {
  readonly rank: number;
}

/** Runs of KV heads, as even as they come, the longer ones first; threads without heads are left out. */
export function shareHeads(kvHeads: number, threads: number): Part[] {
  const start = (rank: number) => Math.ceil(rank * kvHeads / threads);
  return Array.from({ length: threads }, (_, rank) => {
    return { rank, first: start(rank), kvHeads: start(rank + 1) - start(rank) };
  }).filter((part) => part.kvHeads > 0);
}

/** The other heads of a layer, in at most two runs. */
export function otherHeads(kvHeads: number, { first, kvHeads: own }: HeadRun): HeadRun[] {
  return [{ first: 0, kvHeads: first }, { first: first + own, kvHeads: kvHeads - first - own }]
    .filter((run) => run.kvHeads > 0);
}

export function countHeads(runs: readonly HeadRun[]): number {
  return runs.reduce((sum, { kvHeads }) => sum + kvHeads, 0);
}

/** The shape of some KV heads of a layer, and of the query heads that read them. */
export function partShape(shape: AttentionShape, ...runs: readonly HeadRun[]): AttentionShape {
  const group = shape.heads / shape.kvHeads, kvHeads = countHeads(runs), { nullLogits } = shape;
  const slices = runs.map(({ first, kvHeads }) => nullLogits?.slice(first * group, (first + kvHeads) * group) ?? []);
  return {
    ...shape,
    heads: kvHeads * group,
    kvHeads,
    ...nullLogits && { nullLogits: concatenate(slices, Float32Array) },
  };
}

export function ofHeads<T>(lists: readonly T[], { first, kvHeads }: HeadRun): T[] {
  return lists.slice(first, first + kvHeads);
}

/** Tokens from `from` to before `to`. */
export interface TokenRun {
  readonly from: number;
  readonly to: number;
}

/** The numbers that some KV heads have of `[tokens, KV heads …]`, `each` of a token; the caller frees them. */
export function cutHeads(
  all: Float32Array,
  each: number,
  kvHeads: number,
  runs: readonly HeadRun[],
  { tokens = { from: 0, to: all.length / each }, tensors = HOST_TENSORS }: {
    readonly tokens?: TokenRun;
    readonly tensors?: Tensors<Float32Array>;
  } = {},
): Float32Array {
  const piece = tensors.room((tokens.to - tokens.from) * countHeads(runs) * each / kvHeads);
  eachPlace(each, kvHeads, runs, tokens, (at, inPiece, size) => piece.set(all.subarray(at, at + size), inPiece));
  return piece;
}

/** Puts what {@link cutHeads} cuts into its places. */
export function putHeads(
  piece: Float32Array,
  all: Float32Array,
  each: number,
  kvHeads: number,
  runs: readonly HeadRun[],
  tokens: TokenRun = { from: 0, to: all.length / each },
): void {
  eachPlace(each, kvHeads, runs, tokens, (at, inPiece, size) => {
    all.set(piece.subarray(inPiece, inPiece + size), at);
  });
}

/** Where each run's numbers of each token are: in all, in the piece of these runs and tokens, and how many. */
function eachPlace(
  each: number,
  kvHeads: number,
  runs: readonly HeadRun[],
  { from, to }: TokenRun,
  visit: (at: number, inPiece: number, size: number) => void,
): void {
  const perHead = each / kvHeads, width = countHeads(runs) * perHead;
  let column = 0;
  for (const run of runs) {
    const start = run.first * perHead, size = run.kvHeads * perHead;
    for (let t = from; t < to; t++) visit(t * each + start, (t - from) * width + column, size);
    column += size;
  }
}
