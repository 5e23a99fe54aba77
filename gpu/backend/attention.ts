/** Attention of a layer's rows: which stages run, over which heads, queries and splits of the rows. */
import type { GpuBuffer, GpuDevice, ShaderFile, Stage } from "../device.ts";
import type { GpuTensor, GpuTensors } from "../tensors.ts";
import { ATTEND_FEW, ATTEND_MANY, ATTENTION, COLUMNS, MERGE, SOFTMAX } from "./shaders.ts";
import { kindOf, spread } from "./stages.ts";
import type { Block, StoredHeads } from "./stored_heads.ts";

/** Workgroups that keep a device busy. */
const BUSY = 512;
/** Rows of a split at least. */
const SPLIT = 256;
/** Numbers of the output that an invocation may hold, and pairs of a workgroup. */
const MOST_HELD = 16, MOST_PAIRS = 16;
/** Pairs that are taken four at a time. */
const FEW_PAIRS = 16;
/** Splits that merge.wgsl takes. */
const MOST_SPLITS = 256;
/** Floats of attention at hand at once: that of all heads and queries is never stored. */
const SCRATCH = 4 * 2 ** 20;

/** `reach` of the stages where every query sees every row. */
const UNMASKED = 0xffffffff;

/** Queries of all heads, `[count, heads, headDim]`. */
export interface Queries {
  readonly tensor: GpuTensor;
  readonly count: number;
  /** True when each sees every row. */
  readonly unmasked?: boolean;
}

/** Some query heads and queries, all of one block; either whole heads, or a part of one. */
export interface Run {
  readonly block: Block;
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
  readonly #scratch: number;

  constructor(tensors: GpuTensors, stored: StoredHeads) {
    const { gpu, shape: { heads, kvHeads, headDim, reach }, type, maxBinding, scratch = SCRATCH } = stored.options;
    this.#gpu = gpu;
    this.#tensors = tensors;
    this.#stored = stored;
    this.#constants = { D: headDim, KIND: kindOf(type), HEADS: heads, GROUP: heads / kvHeads };
    this.#reach = reach ?? 0;
    this.#scratch = Math.min(scratch, Math.floor(maxBinding / 4));
  }

  /**
   * Attention output, `[count, heads, headDim]`, and of each query and head the largest score and Σ exp(score − largest),
   * `[count, heads, 2]`: borrowed, the caller gives it back.
   */
  attend(queries: Queries): { output: GpuTensor; stats: GpuBuffer } {
    const { D, HEADS } = this.#constants, { count } = queries, nulls = this.#nulls;
    const plan = this.#plan(count), { splits } = plan;
    const output = this.#tensors.make(count * HEADS * D), stats = this.#gpu.borrow(8 * count * HEADS);
    if (splits === 1 && !nulls) {
      this.#attendSplits(queries, plan, output.buffer, stats);
      return { output, stats };
    }
    const parts = this.#gpu.borrow(4 * splits * output.length), partStats = this.#gpu.borrow(splits * stats.size);
    this.#attendSplits(queries, plan, parts, partStats);
    this.#gpu.run(this.#gpu.stage(MERGE, { constants: { D, HEADS, HAS_NULLS: Number(nulls !== undefined) } }), {
      params: [count * HEADS, splits],
      // A binding must have a buffer, whether it is looked at or not.
      buffers: [parts, partStats, output.buffer, stats, nulls ?? parts],
      groups: spread(count * HEADS, 1),
    });
    this.#gpu.giveBack(parts);
    this.#gpu.giveBack(partStats);
    return { output, stats };
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
    const rows = Math.ceil(longest / cuts / 64) * 64;
    const stage = file === ATTENTION
      ? this.#gpu.stage(file, { entry: "attend", constants: { ...this.#constants, TILE: tile } })
      : this.#gpu.stage(file, { constants: this.#constants });
    return { stage, tiles, rows, splits: Math.ceil(longest / rows) };
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
    { tensor, count, unmasked }: Queries,
    { stage, tiles, rows, splits }: Plan,
    out: GpuBuffer,
    stats: GpuBuffer,
  ) {
    for (const block of this.#stored.blocks) {
      const heads = block.words.map((_, i) => block.first + i);
      this.#gpu.run(stage, {
        params: [count, block.first, rows, unmasked ? UNMASKED : this.#reach, ...this.#table(heads)],
        buffers: [tensor.buffer, block.keys, block.values, out, stats, undefined, this.#stored.biases.buffer],
        groups: [tiles, heads.length, splits],
      });
    }
  }

  /** First word, length, first bias and biases of each KV head. */
  #table(kvHeads: readonly number[]): number[] {
    const { lengths, biases } = this.#stored;
    return kvHeads.flatMap((head) => [this.#stored.place(head).word, lengths[head], ...biases.of(head)]);
  }

  /**
   * Attention of the queries from `firstQuery` on, some heads and queries at a time. `prefix`: the rows that are measured;
   * `kernel`: the width of the pooling in the measures. The scratch is only valid within `use`; the measures are the
   * caller's to give back.
   */
  runs(
    { tensor, count, unmasked }: Queries,
    { firstQuery = 0, prefix = 0, kernel = 1 }: { firstQuery?: number; prefix?: number; kernel?: number },
    use: (atHand: AtHand) => void,
  ): GpuBuffer {
    const { HEADS, GROUP } = this.#constants, pitch = this.#stored.longest, queries = count - firstQuery;
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
        buffers: [scratch, measures, nulls ?? run.block.keys],
        groups: spread(rows, 1),
      });
      use({ ...run, scratch, pitch, measures, firstMeasure });
      this.#gpu.giveBack(scratch);
    }
    return measures;
  }

  #scores(queries: GpuTensor, run: Run, scratch: GpuBuffer, pitch: number): void {
    this.#gpu.run(this.#gpu.stage(ATTENTION, { entry: "scores", constants: { ...this.#constants, TILE: 16 } }), {
      params: [run.firstHead, run.firstQuery, run.queries, pitch, ...this.#table(this.#kvHeads(run))],
      buffers: [
        ...[queries.buffer, run.block.keys, undefined, undefined, undefined, scratch],
        this.#stored.biases.buffer,
      ],
      groups: [Math.ceil(pitch / 64), Math.ceil(run.queries / 16), run.heads],
    });
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
    for (const block of this.#stored.blocks) {
      const start = block.first * GROUP, end = start + block.words.length * GROUP;
      for (let firstHead = start; firstHead < end; firstHead += most) {
        const heads = Math.min(most, end - firstHead);
        for (let firstQuery = 0; firstQuery < queries; firstQuery += part) {
          yield { block, firstHead, heads, firstQuery, queries: Math.min(part, queries - firstQuery) };
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
