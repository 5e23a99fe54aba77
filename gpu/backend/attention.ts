/** Attention of a layer's rows: which stages run, over which heads, queries and splits of the rows. */
import type { BoundPart, GpuBuffer, GpuDevice, ShaderFile, Stage } from "../device.ts";
import type { GpuTensor, GpuTensors } from "../tensors.ts";
import { ATTEND_FEW, ATTEND_MANY, ATTENTION, COLUMNS, MERGE, SOFTMAX } from "./shaders.ts";
import { checkSeen, kindOf, spread } from "./stages.ts";
import { type Block, byHeads, MOST_PARTS, originOf } from "./blocks.ts";
import type { StoredHeads } from "./stored_heads.ts";

/** Workgroups that keep a device busy. */
const BUSY = 512;
/** Rows of a split at least. */
const SPLIT = 256;
/** Numbers of the output that an invocation may hold, and pairs of a workgroup. */
const MOST_HELD = 16, MOST_PAIRS = 16;
/** Pairs that are taken four at a time. */
const FEW_PAIRS = 16;
/** Splits that merge.wgsl takes; a part of a head is one at least. */
const MOST_SPLITS = MOST_PARTS;
/** Queries that are attended by themselves at least: parts of a buffer begin at whole multiples of 256 bytes. */
const LEAST_QUERIES = 64;
/** Floats of attention at hand at once: that of all heads and queries is never stored. */
const SCRATCH = 4 * 2 ** 20;

/** `reach` of the stages where every query sees every row. */
const UNMASKED = 0xffffffff;
/** The row behind a block's last to the stages where no other block follows. */
const NO_END = 0xffffffff;

/** Queries of all heads, `[count, heads, headDim]`. */
export interface Queries {
  readonly tensor: GpuTensor;
  readonly count: number;
  /** True when each sees every row. */
  readonly unmasked?: boolean;
}

/** Some query heads and queries, of KV heads that lie together; either all queries of these heads, or some of one. */
export interface Run {
  /** One, or the parts of a KV head. */
  readonly blocks: readonly Block[];
  readonly firstHead: number;
  readonly heads: number;
  readonly firstQuery: number;
  readonly queries: number;
}

/** Attention of a run as it is at hand. */
export interface AtHand extends Run {
  /** `[heads · queries, pitch]`. */
  readonly scratch: GpuBuffer;
  readonly pitch: number;
  /** Mass, entropy, factor and log-sum-exp, `[all heads · all queries]`, from `firstMeasure` on. */
  readonly measures: GpuBuffer;
  readonly firstMeasure: number;
}

export class Attention {
  readonly #gpu: GpuDevice;
  readonly #tensors: GpuTensors;
  readonly #stored: StoredHeads;
  /** Constants of all stages. */
  readonly #constants: { D: number; KIND: number; HEADS: number; GROUP: number };
  readonly #reach: number;
  readonly #maxBinding: number;
  readonly #scratch: number;

  constructor(tensors: GpuTensors, stored: StoredHeads) {
    const { gpu, shape: { heads, kvHeads, headDim, reach }, type, maxBinding, scratch } = stored.options;
    this.#gpu = gpu;
    this.#tensors = tensors;
    this.#stored = stored;
    this.#constants = { D: headDim, KIND: kindOf(type), HEADS: heads, GROUP: heads / kvHeads };
    this.#reach = reach ?? 0;
    this.#maxBinding = maxBinding;
    this.#scratch = scratch ?? Math.min(SCRATCH, Math.floor(maxBinding / 4));
  }

  /**
   * Attention output, `[count, heads, headDim]`, and of each query and head the largest score and Σ exp(score − largest),
   * `[count, heads, 2]`: borrowed, the caller gives it back.
   */
  attend(queries: Queries): { output: GpuTensor; stats: GpuBuffer } {
    const { D, HEADS } = this.#constants, { count, unmasked = false } = queries;
    const plan = this.#plan(count), most = this.#mostQueries(count, plan.splits);
    const output = this.#tensors.make(count * HEADS * D), stats = this.#gpu.borrow(8 * count * HEADS);
    for (let first = 0; first < count; first += most) {
      const some = Math.min(most, count - first);
      const part = (of: GpuBuffer, each: number) =>
        some === count ? of : { of, start: 4 * each * HEADS * first, size: 4 * each * HEADS * some };
      const buffers = [part(queries.tensor.buffer, D), part(output.buffer, D), part(stats, 2)];
      // To queries with a mask it is as if the rows of those behind weren't there yet.
      const hidden = unmasked ? 0 : count - first - some, reach = unmasked ? UNMASKED : this.#reach;
      const call = { queries: buffers[0], count: some, hidden, reach };
      this.#attendSome(some === count ? plan : this.#plan(some), call, buffers[1], buffers[2]);
    }
    return { output, stats };
  }

  /** Queries whose output over all splits a stage can see at once. @throws PalisadeError `gpu.limit`. */
  #mostQueries(count: number, splits: number): number {
    const { D, HEADS } = this.#constants, each = 4 * splits * HEADS * D, most = Math.min(count, LEAST_QUERIES);
    if (splits === 1 || count * each <= this.#maxBinding) return count;
    checkSeen(this.#gpu, `Attention of ${most} queries to ${splits} parts of their rows`, most * each);
    return Math.max(LEAST_QUERIES, Math.floor(this.#maxBinding / each / LEAST_QUERIES) * LEAST_QUERIES);
  }

  /** The same for some queries. */
  #attendSome(plan: Plan, call: SplitCall, output: GpuBuffer | BoundPart, stats: GpuBuffer | BoundPart): void {
    const { D, HEADS } = this.#constants, { splits } = plan, { count } = call, nulls = this.#nulls;
    if (splits === 1 && !nulls) return this.#attendSplits(plan, call, output, stats);
    const parts = this.#gpu.borrow(4 * splits * count * HEADS * D);
    const partStats = this.#gpu.borrow(8 * splits * count * HEADS);
    this.#attendSplits(plan, call, parts, partStats);
    this.#gpu.run(this.#gpu.stage(MERGE, { constants: { D, HEADS, HAS_NULLS: Number(nulls !== undefined) } }), {
      params: [count * HEADS, splits],
      // A binding must have a buffer, whether it is looked at or not.
      buffers: [parts, partStats, output, stats, nulls ?? parts],
      groups: spread(count * HEADS, 1),
    });
    this.#gpu.giveBack(parts);
    this.#gpu.giveBack(partStats);
  }

  /** The logits for nothing, where there are any. */
  get #nulls(): GpuBuffer | undefined {
    const { constants, shape: { nullLogits } } = this.#stored.options;
    return nullLogits && constants.of(nullLogits);
  }

  /** How pairs of query and head, and rows, are cut, and which stage takes them. */
  #plan(count: number): Plan {
    const { GROUP, HEADS } = this.#constants, pairs = count * GROUP, { tile, file, least } = this.#form(pairs);
    const tiles = Math.ceil(pairs / tile), longest = this.#stored.longest;
    const wanted = Math.ceil(BUSY / (tiles * HEADS / GROUP));
    const cuts = Math.max(1, Math.min(wanted, MOST_SPLITS, Math.floor(longest / least)));
    const rows = this.#splitRows(Math.ceil(longest / cuts / 64) * 64);
    const stage = file === ATTENTION
      ? this.#gpu.stage(file, { entry: "attend", constants: { ...this.#constants, TILE: tile } })
      : this.#gpu.stage(file, { constants: this.#constants });
    return { stage, tiles, rows, splits: Math.ceil(longest / rows) };
  }

  /** Rows of a split, at least `wanted`, of which a head's parts are whole multiples. */
  #splitRows(wanted: number): number {
    const { part } = this.#stored;
    if (part === undefined) return wanted;
    let rows = 64;
    while (rows < Math.min(wanted, part)) rows *= 2;
    return rows;
  }

  /** The stage for so many pairs, the pairs of a workgroup, and the rows that it has at least. */
  #form(pairs: number): { file: ShaderFile; tile: number; least: number } {
    const { D } = this.#constants, tiled = !this.#stored.options.short;
    if (tiled && pairs <= FEW_PAIRS && D % 4 === 0 && D <= 256) return { file: ATTEND_FEW, tile: 4, least: 128 };
    if (tiled && pairs > FEW_PAIRS && (D === 64 || D === 128)) return { file: ATTEND_MANY, tile: 64, least: SPLIT };
    const lanes = Math.min(D, 256), lanePairs = Math.floor(256 / lanes), depths = Math.ceil(D / lanes);
    const held = Math.floor(MOST_HELD / depths) * lanePairs;
    return { file: ATTENTION, tile: Math.min(pairs <= 4 ? 4 : MOST_PAIRS, held), least: SPLIT };
  }

  #attendSplits(
    { stage, tiles, rows, splits }: Plan,
    { queries, count, hidden, reach }: SplitCall,
    out: GpuBuffer | BoundPart,
    stats: GpuBuffer | BoundPart,
  ): void {
    for (const block of this.#stored.blocks) {
      const heads = block.words.map((_, i) => block.first + i);
      // Those behind the end of a head are its last block's, which finds nothing to see there.
      const first = block.from / rows, end = Math.min(block.to / rows, splits);
      if (first >= end) continue;
      this.#gpu.run(stage, {
        params: [count, block.first, rows, reach, first, ...this.#table(block, heads, hidden)],
        buffers: [queries, block.keys, block.values, out, stats, undefined, this.#stored.biases.buffer],
        groups: [tiles, heads.length, end - first],
      });
    }
  }

  /** Where row 0 would lie, length but for the last `hidden` rows, first bias and biases of each KV head. */
  #table(block: Block, kvHeads: readonly number[], hidden = 0): number[] {
    const { lengths, biases } = this.#stored;
    return kvHeads.flatMap((head) => [originOf(block, head), lengths[head] - hidden, ...biases.of(head)]);
  }

  /**
   * Attention of the queries from `firstQuery` on, some heads and queries at a time. `prefix`: the rows that are measured;
   * `kernel`: the width of the pooling in the measures. The scratch is only valid within `use`; the measures are the
   * caller's to give back.
   * @throws PalisadeError `gpu.limit` where a stage can't see one query's attention.
   */
  runs(
    { tensor, count, unmasked }: Queries,
    { firstQuery = 0, prefix = 0, kernel = 1 }: { firstQuery?: number; prefix?: number; kernel?: number },
    use: (atHand: AtHand) => void,
  ): GpuBuffer {
    const { HEADS, GROUP } = this.#constants, pitch = this.#stored.longest, queries = count - firstQuery;
    checkSeen(this.#gpu, "A query's attention", 4 * pitch);
    const measures = this.#gpu.borrow(16 * HEADS * queries);
    const nulls = this.#nulls, constants = { GROUP, HAS_NULLS: Number(nulls !== undefined) };
    const softmax = this.#gpu.stage(SOFTMAX, { constants });
    for (const run of this.#cut(queries, pitch)) {
      const rows = run.heads * run.queries, scratch = this.#gpu.borrow(4 * rows * pitch);
      const first = run.firstQuery + firstQuery;
      this.#scores(tensor, { ...run, firstQuery: first }, scratch, pitch);
      const firstMeasure = run.firstHead * queries + run.firstQuery;
      const lengths = this.#kvHeads(run).map((head) => this.#stored.lengths[head]);
      this.#gpu.run(softmax, {
        params: [
          ...[rows, pitch, count, first, run.queries, prefix, run.firstHead, firstMeasure, kernel],
          unmasked ? UNMASKED : this.#reach,
          ...lengths,
        ],
        buffers: [scratch, measures, nulls ?? run.blocks[0].keys],
        groups: spread(rows, 1),
      });
      use({ ...run, scratch, pitch, measures, firstMeasure });
      this.#gpu.giveBack(scratch);
    }
    return measures;
  }

  #scores(queries: GpuTensor, run: Run, scratch: GpuBuffer, pitch: number): void {
    const stage = this.#gpu.stage(ATTENTION, { entry: "scores", constants: { ...this.#constants, TILE: 16 } });
    const { firstHead, firstQuery, heads } = run, kvHeads = this.#kvHeads(run), { buffer } = this.#stored.biases;
    for (const block of run.blocks) {
      const { from, to } = block, rows = Math.min(to, pitch) - from, end = to === Infinity ? NO_END : to;
      if (rows <= 0) continue;
      this.#gpu.run(stage, {
        params: [firstHead, firstQuery, run.queries, pitch, from, end, ...this.#table(block, kvHeads)],
        buffers: [queries.buffer, block.keys, undefined, undefined, undefined, scratch, buffer],
        groups: [Math.ceil(rows / 64), Math.ceil(run.queries / 16), heads],
      });
    }
  }

  #kvHeads({ firstHead, heads }: Run): number[] {
    const { GROUP } = this.#constants, first = Math.floor(firstHead / GROUP);
    const last = Math.floor((firstHead + heads - 1) / GROUP);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  }

  /** Runs that fit the scratch: as many whole heads as do, or a part of one. */
  *#cut(queries: number, pitch: number): Generator<Run> {
    const { GROUP } = this.#constants, rows = Math.max(1, Math.floor(this.#scratch / pitch));
    const most = Math.max(1, Math.floor(rows / queries)), part = Math.min(rows, queries);
    for (const blocks of byHeads(this.#stored.blocks)) {
      const [{ first, words }] = blocks, start = first * GROUP, end = start + words.length * GROUP;
      for (let firstHead = start; firstHead < end; firstHead += most) {
        const heads = Math.min(most, end - firstHead);
        for (let firstQuery = 0; firstQuery < queries; firstQuery += part) {
          yield { blocks, firstHead, heads, firstQuery, queries: Math.min(part, queries - firstQuery) };
        }
      }
    }
  }

  /** Adds a run to the planes of `columns.wgsl`, `window`. `queries`: all of the window. */
  addWindow(run: AtHand, planes: GpuBuffer, { prefix, queries, kernel }: WindowSizes): void {
    const { GROUP, HEADS } = this.#constants;
    this.#gpu.run(this.#gpu.stage(COLUMNS, { entry: "window", constants: { GROUP } }), {
      params: [...runParams(run), prefix, queries, HEADS / GROUP, run.firstMeasure, kernel],
      buffers: [run.scratch, run.measures, planes],
      groups: [Math.ceil(prefix / 64), this.#kvHeads(run).length],
    });
  }

  /** Adds a run to the sums and maxima of `columns.wgsl`, `reduce`. */
  addColumns(run: AtHand, planes: GpuBuffer, weights?: GpuBuffer): void {
    const { HEADS } = this.#constants;
    this.#gpu.run(this.#gpu.stage(COLUMNS, { entry: "reduce" }), {
      params: [...runParams(run), 0, run.queries, HEADS, 0, weights ? 1 : 0],
      // A binding must have a buffer, whether it is looked at or not.
      buffers: [run.scratch, weights ?? run.measures, planes],
      groups: [Math.ceil(run.pitch / 64), run.heads],
    });
  }
}

/** Queries that look at all splits. */
interface SplitCall {
  readonly queries: GpuBuffer | BoundPart;
  readonly count: number;
  /** Last rows of each head that they don't see. */
  readonly hidden: number;
  readonly reach: number;
}

interface Plan {
  readonly stage: Stage;
  /** Workgroups of a KV head for all its pairs of query and query head. */
  readonly tiles: number;
  /** Rows of a split, and how many splits there are. */
  readonly rows: number;
  readonly splits: number;
}

export interface WindowSizes {
  readonly prefix: number;
  readonly queries: number;
  readonly kernel: number;
}

function runParams({ firstHead, heads, firstQuery, queries, pitch }: AtHand): number[] {
  return [firstHead, heads, firstQuery, queries, pitch];
}
