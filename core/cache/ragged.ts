/**
 * The ragged KV cache: per layer and KV head its own number of entries, each at its true position.
 *
 * The backend holds the keys and values (`LayerRows`); this file holds what must stay true about them whatever the
 * backend: positions, the logical counter, trimming back to a mark, and the byte counter that the promises about
 * memory are measured with. A position never changes when neighbours are evicted, and the counter never comes from a
 * length: after reading `L` tokens the next one is at `L`, however few entries were kept.
 *
 * Window layers (`core/shape.ts`) hold what they can still look back to, in every head the same unbroken run of the last
 * positions: {@link RaggedCache.release} lets go of the rest. Since a mark may be trimmed back to, what they held then
 * stays until it is: so while a question is answered a window layer holds at most twice its window.
 *
 * Only {@link RaggedCache.realign} moves positions: then an entry has a *true* position (which token it was) and a
 * *logical* one (where attention takes its key to be). Without it the two are the same.
 */
import type { Backend, CopiedRows, Foresight, LayerRows, RefittedRows, ThinKeys } from "../backend/interface.ts";
import { afterwards, reducedBytes, type ReducedHead } from "../backend/reduced.ts";
import { Temporaries, type Tensor } from "../backend/tensor.ts";
import { copyHeads } from "../backend/copy_heads.ts";
import { BIAS_BYTES, type CacheType, headBytes, packs } from "./entry_type.ts";
import { packedAfter, type PackedHead } from "./packed.ts";
import type { KeyRotation } from "../measure/rotation.ts";
import { globalLayers, layerShape, type ModelShape, windowOf } from "../shape.ts";
import { LazyRows } from "./lazy_rows.ts";

/** A point to trim back to: {@link RaggedCache.mark}. */
export interface CacheMark {
  readonly position: number;
  /** Entries per layer and KV head, `[layers][kvHeads]`. */
  readonly lengths: readonly Int32Array[];
  /** True position of the last entry of each window layer, `[layers]`; −1 where there is none. */
  readonly lasts?: readonly number[];
}

/** Bytes and entries, counted, not computed from a formula. */
export interface CacheBytes {
  /** Entries × bytes of one key and value. */
  readonly live: number;
  /** The same with capacity slack, as the backend holds it. */
  readonly allocated: number;
  /** The most `live` plus candidate scores has been since the cache was made. */
  readonly peak: number;
  /** Scores of entries that still compete for the budget, right now. */
  readonly scores: number;
}

/** One head's entries, for {@link RaggedCache.fill}. */
export interface HeadRows {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** What attention adds to their logits, where it does. */
  readonly bias?: Float32Array;
  /** The first rows as they are packed, where they are. */
  readonly packed?: PackedHead;
  readonly positions: Int32Array;
}

/** Keys and values of all layers, each head with rows of its own number. */
export class RaggedCache implements Disposable {
  readonly backend: Backend;
  readonly shape: ModelShape;
  /** How entries are stored once their layer is packed ({@link pack}). */
  readonly type: CacheType;
  /** How the rows of each layer are stored now. */
  readonly #types: CacheType[];
  /** The layers that look at everything, ascending: those that policies evict from. */
  readonly globals: readonly number[];
  /** Logical position of the next token. */
  position = 0;
  readonly #rows: (LazyRows | undefined)[];
  /** True positions, `[layers][kvHeads]`, each as long as that head has rows. */
  #positions: PositionList[][];
  /** Logical positions, as long; made by the first {@link realign}. */
  #logical?: PositionList[][];
  /** True position of the next token minus its logical one. */
  #shift = 0;
  #scoreBytes = 0;
  /** Bytes of the rows where they wait, while they are not here. */
  #elsewhere?: number;
  /** Entries of each layer, and of all. */
  readonly #layerEntries: number[];
  #entries = 0;
  /** Bytes of each layer's rows, and of all, less what biases take. */
  readonly #layerBytes: number[];
  #bytes = 0;
  /** Entries of each layer, and of all, with a bias. */
  readonly #layerBiased: number[];
  #biased = 0;
  /** What each head has lost of its keys, or reads by, `[layers][kvHeads]`; and what that comes to in bytes, by layer. */
  #reduced: ReducedHead[][];
  readonly #layerReduced: number[];
  #peak = 0;
  /** Marks that may be trimmed back to. */
  readonly #marks = new Set<CacheMark>();

  /** `readAs`: how entries are stored until their layer is packed. */
  constructor(backend: Backend, shape: ModelShape, type: CacheType = "f32", readAs: CacheType = type) {
    this.backend = backend;
    this.shape = shape;
    this.type = type;
    this.#types = Array.from({ length: shape.layers }, (_, layer) => this.#whole(layer) ? "f32" : readAs);
    this.#layerBytes = new Array(shape.layers).fill(0);
    this.globals = globalLayers(shape);
    this.#rows = new Array(shape.layers).fill(undefined);
    this.#layerEntries = new Array(shape.layers).fill(0);
    this.#layerBiased = new Array(shape.layers).fill(0);
    this.#layerReduced = new Array(shape.layers).fill(0);
    this.#reduced = Array.from(
      { length: shape.layers },
      (_, layer) => new Array(layerShape(shape, layer).kvHeads).fill({}),
    );
    this.#positions = Array.from(
      { length: shape.layers },
      (_, layer) => Array.from({ length: layerShape(shape, layer).kvHeads }, () => new PositionList()),
    );
  }

  /** Tokens this cache has been through: the true position of the next one. */
  get seen(): number {
    return this.position + this.#shift;
  }

  /**
   * Rows of one layer, to be asked for anew after each eviction; made on first use with room for `reserve` rows per head.
   */
  rows(layer: number, reserve = 0): LayerRows {
    if (this.#elsewhere !== undefined) throw new Error("The cache's rows are elsewhere: show() brings them back");
    return this.#lazy(layer, reserve).settled();
  }

  #lazy(layer: number, reserve = 0): LazyRows {
    return this.#rows[layer] ??= this.#newRows(layer, reserve);
  }

  #newRows(layer: number, reserve: number): LazyRows {
    return new LazyRows(this.backend.createRows(layerShape(this.shape, layer), reserve, this.#types[layer]));
  }

  /**
   * Appends `count` entries to every head of `layer`, at logical positions `first`, `first + 1`, …
   * `keys` (after RoPE) and `values`: `[count, kvHeads, headDim]`. Does not move the logical counter: that happens
   * once per token, not once per layer ({@link advance}).
   */
  append(layer: number, keys: Tensor, values: Tensor, count: number, first: number): void {
    this.rows(layer).append(keys, values, count);
    for (const list of this.#positions[layer]) list.appendRange(first + this.#shift, count);
    for (const list of this.#logical?.[layer] ?? []) list.appendRange(first, count);
    this.#count(layer);
  }

  /**
   * Gives a layer entries behind those it has, head by head: keys and values `[length, headDim]`, positions ascending;
   * biases and packed rows only where it has none. Like {@link append} it does not move the logical counter.
   */
  fill(layer: number, heads: readonly HeadRows[]): void {
    const { keys, values, count } = byToken(heads, layerShape(this.shape, layer).headDim);
    const lists = this.#positions[layer];
    const ends = heads.map(({ positions }, h) => lists[h].length + positions.length);
    if (count > 0) this.#appendNumbers(layer, keys, values, count);
    this.compact(layer, ends.map((length) => Int32Array.from({ length }, (_, i) => i)));
    heads.forEach(({ positions }, h) => {
      lists[h].end(positions);
      this.#logical?.[layer][h].end(positions.map((position) => position - this.#shift));
    });
    heads.forEach(({ values, bias }, h) => {
      if (bias && bias.length > 0) this.refit(layer, h, { values, bias });
    });
    // Behind refits, whose values they are of.
    if (heads.some(({ packed }) => packed)) {
      this.rows(layer).pack!(heads.map(({ packed }) => packed));
      heads.forEach(({ packed }, h) => this.#positions[layer][h].packed = packed?.rows ?? 0);
      this.#count(layer);
    }
  }

  /**
   * Gives the entries of one head other values, and biases that attention adds to their logits; see `LayerRows.refit`.
   * @throws RangeError where the backend can't, or a length doesn't fit; PalisadeError `cache-type.range`.
   */
  refit(layer: number, kvHead: number, rows: RefittedRows): void {
    const layerRows = this.rows(layer);
    if (!layerRows.refit) throw new RangeError(`Cannot refit: the ${this.backend.name} backend adds no biases`);
    layerRows.refit(kvHead, rows);
    const list = this.#positions[layer][kvHead];
    list.biased = list.length;
    this.#count(layer);
  }

  /**
   * Gives a layer other keys and values, and biases where they are given, for as many entries as each head has;
   * positions stay. The rows are made anew, so for a moment the layer is there twice.
   * @throws RangeError for other lengths, or biases where the backend adds none; PalisadeError `cache-type.range`. Then the
   * rows are as they were.
   */
  rewrite(layer: number, heads: readonly CopiedRows[]): void {
    const made = this.#newRows(layer, 0);
    try {
      this.#putBack(made.settled(), layer, heads);
    } catch (error) {
      made.free();
      throw error;
    }
    this.#rows[layer]?.free();
    this.#rows[layer] = made;
    this.#positions[layer].forEach((list, head) => list.biased = heads[head].bias ? list.length : 0);
    this.#count(layer);
  }

  /**
   * Leaves out channels of one head's keys, all but those of its last entries; see `LayerRows.thin`.
   * @throws RangeError where the backend can't, or something doesn't fit.
   */
  thin(layer: number, kvHead: number, keys: ThinKeys): void {
    const rows = this.rows(layer);
    if (!rows.thin) throw new RangeError(`Cannot thin keys of layer ${layer} on the ${this.backend.name} backend`);
    rows.thin(kvHead, keys);
    const thin = { channels: keys.channels.slice(), rows: this.length(layer, kvHead) - keys.recent };
    this.#reduced[layer][kvHead] = { thin };
    this.#count(layer);
  }

  /**
   * From now on single queries of one head read a part of its entries; see `LayerRows.foresee`.
   * @throws RangeError where the backend can't, or something doesn't fit.
   */
  foresee(layer: number, kvHead: number, foresight: Foresight): void {
    const rows = this.rows(layer);
    if (!rows.foresee) throw new RangeError(`Cannot foresee in layer ${layer} on the ${this.backend.name} backend`);
    rows.foresee(kvHead, foresight);
    this.#reduced[layer][kvHead] = { foresight: { ...foresight, channels: foresight.channels.slice() } };
    this.#count(layer);
  }

  /** What one head has lost of its keys, or reads by. */
  reduced(layer: number, kvHead: number): ReducedHead {
    return this.#reduced[layer][kvHead];
  }

  /** Whether any head's keys have lost channels. */
  get thinned(): boolean {
    return this.#reduced.some((heads) => heads.some(({ thin }) => thin));
  }

  /** Whether queries of any head read a part of it. */
  get foresees(): boolean {
    return this.#reduced.some((heads) => heads.some(({ foresight }) => foresight));
  }

  /**
   * Stores what a layer has now as {@link type} says: in rows of that type where it was read as another, and packed where
   * the type is. Entries that come later are packed when this is called again. Copies the layer where its type changes.
   * @throws PalisadeError `cache-type.range`, and what a backend without room throws; the layer is as before then.
   */
  async pack(layer: number): Promise<void> {
    const before = this.#rows[layer];
    if (this.#whole(layer)) return;
    if (!before) {
      this.#types[layer] = this.type;
      return;
    }
    if (this.#types[layer] !== this.type) {
      const heads = await copyHeads(before.settled());
      const rows = this.backend.createRows(layerShape(this.shape, layer), 0, this.type);
      try {
        this.#putBack(rows, layer, heads);
      } catch (error) {
        rows.free();
        throw error;
      }
      this.#rows[layer] = new LazyRows(rows);
      this.#types[layer] = this.type;
      before.free();
    }
    if (packs(this.type)) {
      this.rows(layer).pack?.();
      for (const list of this.#positions[layer]) list.packed = list.length;
    }
    this.#count(layer);
  }

  /** The same for all layers. */
  async packAll(): Promise<void> {
    for (let layer = 0; layer < this.shape.layers; layer++) await this.pack(layer);
  }

  /** How entries of a layer are stored once it is packed: whole where it convolves. */
  typeOf(layer: number): CacheType {
    return this.#whole(layer) ? "f32" : this.type;
  }

  #whole(layer: number): boolean {
    return !!this.shape.convolved?.[layer];
  }

  /** Entries of one layer whose logits get a bias. */
  layerBiased(layer: number): number {
    return this.#layerBiased[layer];
  }

  /** Entries whose logits get a bias, in all layers and heads. */
  get biased(): number {
    return this.#biased;
  }

  #appendNumbers(layer: number, keys: Float32Array, values: Float32Array, count: number): void {
    const { tensors } = this.backend;
    using temporaries = new Temporaries(tensors);
    const [k, v] = [keys, values].map((numbers) => temporaries.add(tensors.upload(numbers)));
    this.append(layer, k, v, count, 0);
  }

  /** Moves the logical counter past `count` tokens. */
  advance(count: number): void {
    this.position += count;
  }

  /**
   * Goes on from a cache that was saved, once every layer is filled: the next token is at logical position `position`,
   * and the `seen`-th of all. `logical`: where entries stand if that is not where they come from,
   * `[layers][kvHeads][entries]`.
   * @throws RangeError when the logical positions don't fit the entries.
   */
  resume(position: number, seen: number, logical?: readonly (readonly Int32Array[])[]): void {
    this.#logical = logical?.map((heads, layer) =>
      heads.map((positions, head) => {
        if (positions.length === this.#positions[layer][head].length) return PositionList.of(positions);
        throw new RangeError(`Layer ${layer}, head ${head}: ${positions.length} logical positions`);
      })
    );
    this.position = position;
    this.#shift = seen - position;
  }

  /**
   * Keeps only these rows of each head of `layer` (ascending row indices); the pages they leave are freed at once, the
   * others move up when they must ({@link LazyRows}).
   */
  compact(layer: number, kept: readonly Int32Array[]): void {
    this.#lazy(layer).compact(kept);
    this.#positions[layer].forEach((list, head) => list.keep(kept[head]));
    kept.forEach((rows, head) => this.#reduced[layer][head] = afterwards(this.#reduced[layer][head], rows));
    this.#logical?.[layer].forEach((list, head) => list.keep(kept[head]));
    this.#count(layer);
  }

  /** Lets all rows of `layer` go, for readers that look at one layer at a time. */
  clear(layer: number): void {
    this.compact(layer, this.#positions[layer].map(() => new Int32Array(0)));
  }

  /**
   * Lets go of what no later token can look back to: in a window layer all but the last entries, one fewer than its window,
   * and those that a mark needs; nothing in a global one. With `least`, only once so many entries per head would go.
   */
  release(layer: number, least = 1): void {
    const length = this.#positions[layer][0].length, first = length - (windowOf(this.shape, layer) - 1);
    if (first < least) return;
    const needed = Math.max(0, ...Array.from(this.#marks, ({ lengths }) => lengths[layer][0]));
    if (first - needed < least) return;
    const kept = Int32Array.from({ length: needed + length - first }, (_, i) => i < needed ? i : i - needed + first);
    this.compact(layer, this.#positions[layer].map(() => kept));
  }

  /** The same in every layer. */
  releaseAll(): void {
    for (let layer = 0; layer < this.shape.layers; layer++) this.release(layer);
  }

  /** Moves up all rows that eviction has left behind gaps, which else happens when they are next used. */
  settle(): void {
    for (const rows of this.#rows) rows?.settled();
  }

  /**
   * Closes the gaps: every head's entries move to the logical positions that end at P − 1, in order and without a gap,
   * P being the longest head's entries; the next token is at P. Keys turn with them, in all layers alike or in each by
   * its own rotation. True positions stay.
   * A cache whose backend fails on the way must be disposed of.
   */
  async realign(rotation: KeyRotation | readonly KeyRotation[]): Promise<void> {
    const next = Math.max(...this.#positions.flat().map(({ length }) => length));
    this.#logical ??= this.#positions.map((heads) => heads.map((list) => list.copy()));
    for (const [layer, heads] of this.#logical.entries()) {
      const moves = heads.map((list) => list.moveTo(next - list.length));
      if (moves.some((list) => list.some((move) => move !== 0))) {
        await this.rows(layer).rotateKeys(moves, "pairs" in rotation ? rotation : rotation[layer]);
        for (const list of this.#positions[layer]) list.packed = 0;
        this.#count(layer);
      }
    }
    this.#shift += this.position - next;
    this.position = next;
  }

  /** A cache of its own with the same entries, positions and counters; its byte peak starts anew. */
  async fork(): Promise<RaggedCache> {
    const copy = new RaggedCache(this.backend, this.shape, this.type);
    try {
      for (const [layer, rows] of this.#rows.entries()) {
        copy.#types[layer] = this.#types[layer];
        if (rows) copy.#rows[layer] = new LazyRows(await rows.settled().clone());
      }
    } catch (error) {
      copy[Symbol.dispose]();
      throw error;
    }
    const copies = (lists: PositionList[][]) => lists.map((heads) => heads.map((list) => list.copy()));
    copy.#positions = copies(this.#positions);
    copy.#logical = this.#logical && copies(this.#logical);
    copy.#reduced = this.#reduced.map((heads) => [...heads]);
    copy.#shift = this.#shift;
    copy.position = this.position;
    copy.#rows.forEach((_, layer) => copy.#count(layer));
    return copy;
  }

  /**
   * Frees all rows, which wait elsewhere, in `bytes` bytes, until {@link show}. What is known of them stays: positions,
   * lengths, counters. The kernels wipe what they free; a script's arrays are left to the engine.
   */
  hide(bytes: number): void {
    for (const rows of this.#rows) rows?.free();
    this.#rows.fill(undefined);
    this.#elsewhere = bytes;
  }

  /**
   * Takes back rows that were hidden: `give` has those of each layer, head by head, as many as there were.
   * @throws RangeError for others, and what `give` throws; the rows are still elsewhere then.
   */
  async show(give: (layer: number) => Promise<readonly CopiedRows[]>): Promise<void> {
    const made: LazyRows[] = [];
    try {
      for (let layer = 0; layer < this.shape.layers; layer++) {
        const rows = this.#newRows(layer, 0);
        made.push(rows);
        this.#putBack(rows.settled(), layer, await give(layer));
      }
    } catch (error) {
      for (const rows of made) rows.free();
      throw error;
    }
    made.forEach((rows, layer) => this.#rows[layer] = rows);
    this.#elsewhere = undefined;
  }

  #putBack(rows: LayerRows, layer: number, heads: readonly CopiedRows[]): void {
    const { headDim } = layerShape(this.shape, layer), { tensors } = this.backend;
    const lengths = heads.map(({ keys }) => keys.length / headDim);
    const wanted = this.#positions[layer].map(({ length }) => length);
    if (`${lengths}` !== `${wanted}`) throw new RangeError(`Layer ${layer}: heads of ${lengths} rows: want ${wanted}`);
    const { keys, values, count } = byToken(heads, headDim);
    using temporaries = new Temporaries(tensors);
    const [k, v] = [keys, values].map((numbers) => temporaries.add(tensors.upload(numbers)));
    if (count > 0) rows.append(k, v, count);
    rows.compact(lengths.map((length) => Int32Array.from({ length }, (_, i) => i)));
    heads.forEach(({ values, bias }, h) => {
      if (!bias || bias.length === 0) return;
      if (!rows.refit) throw new RangeError(`The ${this.backend.name} backend adds no biases`);
      rows.refit(h, { values, bias });
    });
    this.#reduced[layer].forEach(({ thin, foresight }, h) => {
      if (thin) rows.thin!(h, { channels: thin.channels, recent: lengths[h] - thin.rows });
      if (foresight) rows.foresee!(h, foresight);
    });
  }

  /** Tells the counter how many bytes of candidate scores exist right now. */
  setScoreBytes(bytes: number): void {
    this.#scoreBytes = bytes;
    this.#raisePeak();
  }

  /** Entries of one head. */
  length(layer: number, kvHead: number): number {
    return this.#positions[layer][kvHead].length;
  }

  /** How many entries of one head, from the first on, are packed. */
  packed(layer: number, kvHead: number): number {
    return this.#positions[layer][kvHead].packed;
  }

  /** Entries of all heads of one layer. */
  layerEntries(layer: number): number {
    return this.#layerEntries[layer];
  }

  /** Entries of all layers and heads. */
  entries(): number {
    return this.#entries;
  }

  /** Whether positions were moved ({@link realign}), so that logical ones are others than true ones. */
  get realigned(): boolean {
    return this.#logical !== undefined;
  }

  /** Entries of the global layers: what a budget is about. */
  globalEntries(): number {
    return this.globals.reduce((sum, layer) => sum + this.#layerEntries[layer], 0);
  }

  /** A copy of the true positions of one head's entries, in row order. */
  positions(layer: number, kvHead: number): Int32Array {
    return this.#positions[layer][kvHead].toArray();
  }

  /** A copy of the logical positions of one head's entries: what their keys are rotated to. */
  logicalPositions(layer: number, kvHead: number): Int32Array {
    return (this.#logical ?? this.#positions)[layer][kvHead].toArray();
  }

  /** The state to come back to with {@link trim}. Until then window layers go on holding what they hold now. */
  mark(): CacheMark {
    const mark = {
      position: this.position,
      lengths: this.#positions.map((heads) => Int32Array.from(heads, (list) => list.length)),
      lasts: this.#positions.map(([list], layer) =>
        windowOf(this.shape, layer) < Infinity ? list.at(list.length - 1) : -1
      ),
    };
    // Others hold everything anyway.
    if (this.globals.length < this.shape.layers) this.#marks.add(mark);
    return mark;
  }

  /**
   * Drops everything appended after `mark`, in every head. Nothing may have been evicted or moved in between. What a
   * window layer lets go of afterwards may be the mark's, which then can't be trimmed back to again.
   * @throws RangeError when a window layer no longer holds what it held.
   */
  trim(mark: CacheMark): void {
    mark.lasts?.forEach((last, layer) => {
      const list = this.#positions[layer][0], length = mark.lengths[layer][0];
      if (last < 0 || list.at(length - 1) === last) return;
      throw new RangeError(`Can't trim back: layer ${layer} has let go of entries that it held then`);
    });
    for (const each of this.#marks) {
      if (each === mark || each.position > mark.position) this.#marks.delete(each);
    }
    mark.lengths.forEach((lengths, layer) => {
      this.#rows[layer]?.settled().truncate(lengths);
      this.#positions[layer].forEach((list, head) => list.truncate(lengths[head]));
      this.#reduced[layer] = this.#reduced[layer].map((head, h) => afterwards(head, lengths[h]));
      this.#logical?.[layer].forEach((list, head) => list.truncate(lengths[head]));
      this.#count(layer);
    });
    this.position = mark.position;
  }

  /**
   * Drops the last `count` tokens, which were appended one by one with nothing evicted or moved in between. What a window
   * layer let go of meanwhile stays away: another mark is the way back to all of it.
   */
  takeBack(count: number): void {
    if (count === 0) return;
    for (let layer = 0; layer < this.shape.layers; layer++) {
      const lengths = this.#positions[layer].map(({ length }) => length - count);
      this.#rows[layer]?.settled().truncate(lengths);
      this.#positions[layer].forEach((list, head) => list.truncate(lengths[head]));
      this.#logical?.[layer].forEach((list, head) => list.truncate(lengths[head]));
      this.#count(layer);
    }
    this.position -= count;
  }

  /** Bytes held now, and the most there were. */
  bytes(): CacheBytes {
    const allocated = this.#rows.reduce((sum, rows) => sum + (rows?.allocatedBytes ?? 0), this.#elsewhere ?? 0);
    return { live: this.#live, allocated, peak: this.#peak, scores: this.#scoreBytes };
  }

  /** Gives all memory back. */
  [Symbol.dispose](): void {
    for (const rows of this.#rows) rows?.free();
    this.#rows.fill(undefined);
    this.#positions.forEach((lists, layer) => {
      for (const list of lists) list.truncate(0);
      this.#reduced[layer].fill({});
      this.#count(layer);
    });
  }

  /** Takes in how many entries a layer has now. */
  #count(layer: number): void {
    const entries = this.#positions[layer].reduce((sum, list) => sum + list.length, 0);
    this.#entries += entries - this.#layerEntries[layer];
    this.#layerEntries[layer] = entries;
    const { headDim } = layerShape(this.shape, layer), type = this.#types[layer];
    const bytes = this.#positions[layer].reduce(
      (sum, list) => sum + headBytes(headDim, type, list.length, list.packed),
      0,
    );
    this.#bytes += bytes - this.#layerBytes[layer];
    this.#layerBytes[layer] = bytes;
    const biased = this.#positions[layer].reduce((sum, list) => sum + list.biased, 0);
    this.#biased += biased - this.#layerBiased[layer];
    this.#layerBiased[layer] = biased;
    const lists = this.#positions[layer];
    this.#layerReduced[layer] = this.#reduced[layer].reduce(
      (sum, head, h) => sum + reducedBytes(head, lists[h].length, headDim, this.type),
      0,
    );
    this.#raisePeak();
  }

  get #live(): number {
    const reduced = this.#layerReduced.reduce((sum, bytes) => sum + bytes, 0);
    return this.#bytes + this.#biased * BIAS_BYTES + reduced;
  }

  #raisePeak(): void {
    this.#peak = Math.max(this.#peak, this.#live + this.#scoreBytes);
  }
}

/** Rows of heads, `[length, headDim]` each, as they are appended: `[count, heads, headDim]`, zeros behind shorter heads. */
function byToken(heads: readonly Pick<CopiedRows, "keys" | "values">[], headDim: number) {
  const count = heads.reduce((most, head) => Math.max(most, head.keys.length / headDim), 0);
  const keys = new Float32Array(count * heads.length * headDim), values = new Float32Array(keys.length);
  heads.forEach((head, h) => {
    // Plain loops: a `subarray` per row costs more than the row.
    for (let i = 0, from = 0; from < head.keys.length; i++) {
      for (let to = (i * heads.length + h) * headDim, end = to + headDim; to < end; to++, from++) {
        keys[to] = head.keys[from];
        values[to] = head.values[from];
      }
    }
  });
  return { keys, values, count };
}

/** Growable list of positions; doubles, so that appending stays linear. */
class PositionList {
  #data = new Int32Array(64);
  length = 0;
  /** How many entries, from the first on, have a bias. */
  biased = 0;
  /** How many entries, from the first on, are packed. */
  packed = 0;

  appendRange(first: number, count: number): void {
    if (this.length + count > this.#data.length) {
      const grown = new Int32Array(Math.max(this.length + count, this.#data.length * 2));
      grown.set(this.#data.subarray(0, this.length));
      this.#data = grown;
    }
    for (let i = 0; i < count; i++) this.#data[this.length++] = first + i;
  }

  keep(rows: Int32Array): void {
    if (rows.length === this.length) return;
    this.biased = rows.filter((row) => row < this.biased).length;
    this.packed = packedAfter(rows, this.packed);
    const data = new Int32Array(rows.length);
    for (let i = 0; i < rows.length; i++) data[i] = this.#data[rows[i]];
    this.#data = data;
    this.length = rows.length;
  }

  static of(positions: Int32Array): PositionList {
    const list = new PositionList();
    list.set(positions);
    return list;
  }

  set(positions: Int32Array): void {
    this.#data = positions.slice();
    this.length = positions.length;
  }

  /** The last of them are these. */
  end(positions: Int32Array): void {
    this.#data.set(positions, this.length - positions.length);
  }

  /** Makes them `first`, `first + 1`, … and returns by how much each moved. */
  moveTo(first: number): Int32Array {
    const moves = new Int32Array(this.length);
    for (let i = 0; i < this.length; i++) {
      moves[i] = first + i - this.#data[i];
      this.#data[i] = first + i;
    }
    return moves;
  }

  /** −1 where there is none. */
  at(index: number): number {
    return index >= 0 && index < this.length ? this.#data[index] : -1;
  }

  copy(): PositionList {
    const copy = new PositionList();
    copy.#data = this.#data.slice();
    copy.length = this.length;
    copy.biased = this.biased;
    copy.packed = this.packed;
    return copy;
  }

  truncate(length: number): void {
    if (length > this.length) throw new RangeError(`Can't trim ${this.length} entries to ${length}`);
    this.length = length;
    this.biased = Math.min(this.biased, length);
    this.packed = Math.min(this.packed, length);
  }

  toArray(): Int32Array {
    return this.#data.slice(0, this.length);
  }
}
