/**
 * An attack on KV-Cloak by one who knows how it works, the model, and a few tokens of the text: those that every chat
 * frame puts in front of it will do. It has no secret.
 *
 * Of X' = S·Π·(X·M + A), S and Π only mix a block's sixteen rows, so their *span* is known: sixteen dimensions of
 * headDim. Every row x·M but the one that is lit lies in it. M turns pairs of numbers, the same in all blocks of a head.
 * So a known x gives equations that are linear in M's cosines and sines, and two or three known rows have one solution.
 * Then each token at each position is tried by itself: does it lie in the span? What is lit in one head is not in
 * another. Nothing of this is hindered by the beacon, the shuffle, or secrets that are new for each file.
 */
import { rotateRows } from "../../core/measure/rotation.ts";
import type { Model } from "../../model/model.ts";
import { BLOCK } from "../../model/snapshot/cloak/cloak.ts";
import { type FirstLayer, inverted } from "./attacks.ts";
import type { StolenHead } from "./stolen.ts";

/** Rows that lie in a span leave no more of themselves outside it, squared: float32's rounding, with room. */
const OUTSIDE = 1e-3;
/** Rounds of leaving out what is lit. */
const ROUNDS = 4;

/** Sixteen orthonormal vectors `[16, headDim]` that span a block. */
type Span = Float64Array;

/** M's angles, `[headDim / 2]` each. */
interface Turns {
  readonly cos: Float64Array;
  readonly sin: Float64Array;
}

/** A known row, as the model makes it, and the block it lies in. */
interface Known {
  readonly row: Float32Array;
  readonly span: Span;
}

/**
 * The token at each position that the first layer's rows tell, those of `known` (tokens by position) left out. `heads`:
 * the first layer, whole blocks in the file's order.
 */
export function adapt(
  model: Model,
  layer: FirstLayer,
  heads: readonly StolenHead[],
  known: ReadonlyMap<number, number>,
): Map<number, number> {
  const best = new Map<number, { readonly token: number; readonly outside: number }>();
  for (const [head, stolen] of heads.entries()) {
    const rowsOf = new FirstRows(model, layer, head), { positions } = stolen, { headDim } = model.config;
    const spans = [stolen.keys, stolen.values].map((side) => spansOf(side, headDim));
    const sides = ([false, true] as const).map((isValue, side) => {
      const rows = [...positions].flatMap((position, i): Known[] => {
        const token = known.get(position), span = spans[side][Math.floor(i / BLOCK)];
        return token === undefined ? [] : [{ row: rowsOf.row(token, position, isValue), span }];
      });
      return turnsOf(rows, headDim);
    });
    if (sides.some((turns) => turns === undefined)) continue;
    const [keyTurns, valueTurns] = sides as Turns[];
    for (const [block, span] of spans[1].entries()) {
      const candidates = inSpan(rowsOf.values, headDim, turnedBack(span, valueTurns));
      const keySpan = turnedBack(spans[0][block], keyTurns);
      for (const position of positions.subarray(block * BLOCK, (block + 1) * BLOCK)) {
        if (known.has(position)) continue;
        for (const token of candidates) {
          const outside = shareOutside(rowsOf.row(token, position, false), 0, keySpan);
          if (outside < (best.get(position)?.outside ?? OUTSIDE)) best.set(position, { token, outside });
        }
      }
    }
  }
  return new Map([...best].map(([position, { token }]) => [position, token]));
}

/** What one head of the first layer holds of any token at any position. */
class FirstRows {
  readonly #model: Model;
  readonly #keys: Float32Array;
  /** `[vocabulary, headDim]` */
  readonly values: Float32Array;

  constructor(model: Model, { keys, values, vocabulary }: FirstLayer, head: number) {
    const { headDim } = model.config, wide = keys.length / vocabulary;
    const ofHead = (all: Float32Array) => {
      const own = new Float32Array(vocabulary * headDim);
      for (let token = 0; token < vocabulary; token++) {
        const from = token * wide + head * headDim;
        own.set(all.subarray(from, from + headDim), token * headDim);
      }
      return own;
    };
    this.#model = model;
    this.#keys = ofHead(keys);
    this.values = ofHead(values);
  }

  row(token: number, position: number, isValue: boolean): Float32Array {
    const { headDim, ropes } = this.#model.config, all = isValue ? this.values : this.#keys;
    const row = all.slice(token * headDim, (token + 1) * headDim);
    if (!isValue) rotateRows(row, headDim, Int32Array.of(position), ropes[0]);
    return row;
  }
}

/** Spans of blocks of sixteen rows, by Gram and Schmidt. */
function spansOf(rows: Float32Array, headDim: number): Span[] {
  return Array.from({ length: rows.length / (BLOCK * headDim) }, (_, block) => {
    const span = Float64Array.from(rows.subarray(block * BLOCK * headDim, (block + 1) * BLOCK * headDim));
    for (let i = 0; i < BLOCK; i++) {
      const own = span.subarray(i * headDim, (i + 1) * headDim);
      // Twice, because the beacon in every row makes them alike.
      for (let j = 0; j < 2 * i; j++) {
        const other = span.subarray(j % i * headDim, (j % i + 1) * headDim), along = dot(own, other);
        for (let k = 0; k < headDim; k++) own[k] -= along * other[k];
      }
      const length = Math.sqrt(dot(own, own)) || 1;
      for (let k = 0; k < headDim; k++) own[k] /= length;
    }
    return span;
  });
}

function dot(a: ArrayLike<number>, b: ArrayLike<number>, from = 0): number {
  let sum = 0;
  for (let i = 0; i < b.length; i++) sum += a[from + i] * b[i];
  return sum;
}

/** M, from rows that are known: those that can't lie in their block's span, being lit, are left out by and by. */
function turnsOf(known: readonly Known[], headDim: number): Turns | undefined {
  let used = known;
  for (let round = 0;; round++) {
    // Each row has headDim − 16 equations, for headDim unknown numbers and one free scale.
    if (used.length * (headDim - BLOCK) < headDim) return undefined;
    const turns = solution(used, headDim);
    const outside = used.map(({ row, span }) => shareOutside(row, 0, turnedBack(span, turns)));
    if (Math.max(...outside) < OUTSIDE || round === ROUNDS) return turns;
    const limit = [...outside].sort((a, b) => a - b)[Math.floor(0.9 * (outside.length - 1))];
    used = used.filter((_, i) => outside[i] <= limit);
  }
}

/** The cosines and sines that bring the rows nearest to their spans, to a scale: the smallest eigenvector. */
function solution(known: readonly Known[], headDim: number): Turns {
  const half = headDim / 2, normal = new Float64Array(headDim * headDim);
  for (const { row, span } of known) {
    const scale = 1 / dot(row, row);
    // Of the span's vectors along each unknown: x·M = Σ cosᵢ·uᵢ + sinᵢ·wᵢ.
    const along = new Float64Array(BLOCK * headDim);
    for (let q = 0; q < BLOCK; q++) {
      for (let i = 0; i < half; i++) {
        const [x, y] = [row[i], row[half + i]], [a, b] = [span[q * headDim + i], span[q * headDim + half + i]];
        along[q * headDim + i] = a * x + b * y;
        along[q * headDim + half + i] = b * x - a * y;
      }
    }
    for (let i = 0; i < headDim; i++) {
      const square = row[i % half] ** 2 + row[half + i % half] ** 2;
      normal[i * headDim + i] += scale * square;
      for (let j = 0; j < headDim; j++) {
        let sum = 0;
        for (let q = 0; q < BLOCK; q++) sum += along[q * headDim + i] * along[q * headDim + j];
        normal[i * headDim + j] -= scale * sum;
      }
    }
  }
  for (let i = 0; i < headDim; i++) normal[i * headDim + i] += 1e-9;
  const inverse = inverted(normal, headDim);
  let vector = Float64Array.from({ length: headDim }, (_, i) => 1 + i % 3);
  for (let step = 0; step < 50; step++) {
    const next = Float64Array.from(vector, (_, i) => dot(inverse, vector, i * headDim));
    const length = Math.sqrt(dot(next, next));
    vector = next.map((x) => x / length);
  }
  const lengths = Float64Array.from({ length: half }, (_, i) => Math.hypot(vector[i], vector[half + i]) || 1);
  return {
    cos: lengths.map((length, i) => vector[i] / length),
    sin: lengths.map((length, i) => vector[half + i] / length),
  };
}

/** A block's span before M: what plain rows lie in. */
function turnedBack(span: Span, { cos, sin }: Turns): Span {
  const half = cos.length, headDim = 2 * half, back = new Float64Array(span.length);
  for (let at = 0; at < span.length; at += headDim) {
    for (let i = 0; i < half; i++) {
      const [a, b] = [span[at + i], span[at + half + i]];
      back[at + i] = a * cos[i] + b * sin[i];
      back[at + half + i] = b * cos[i] - a * sin[i];
    }
  }
  return back;
}

/** Share of a row's square that lies outside a span. */
function shareOutside(rows: Float32Array, from: number, span: Span): number {
  const headDim = span.length / BLOCK;
  let all = 0, inside = 0;
  for (let i = 0; i < headDim; i++) all += rows[from + i] ** 2;
  for (let q = 0; q < BLOCK; q++) {
    let along = 0;
    for (let i = 0; i < headDim; i++) along += rows[from + i] * span[q * headDim + i];
    inside += along * along;
  }
  return 1 - inside / all;
}

/** Tokens whose rows `[vocabulary, headDim]` lie in a span. */
function inSpan(rows: Float32Array, headDim: number, span: Span): number[] {
  const found: number[] = [];
  for (let from = 0; from < rows.length; from += headDim) {
    if (shareOutside(rows, from, span) < OUTSIDE) found.push(from / headDim);
  }
  return found;
}
