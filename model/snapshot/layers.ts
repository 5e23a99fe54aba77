/**
 * One layer of a cache as a section, and back. Rows lie head after head; each has a position, and what else is known of
 * it. Heads of a layer, and layers, may have any number of rows.
 */
import { concatenate } from "../../core/concatenate.ts";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import type { ReducedHead } from "../../core/backend/reduced.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { CopiedRows } from "../../core/backend/interface.ts";
import { type CacheType, packs, partsOf } from "../../core/cache/entry_type.ts";
import {
  emptyPart,
  GROUP,
  type PackedHead,
  type PackedPart,
  packedWidth,
  type Part,
  unpackRows as unpackPacked,
} from "../../core/cache/packed.ts";
import {
  type AttentionShape,
  layerShape,
  type ModelShape,
  observedShape,
  sourceOf,
  windowOf,
} from "../../core/shape.ts";
import type { HeadCertificate, LayerCertificate } from "../../core/worst_case/certificate.ts";
import { DTYPE_BYTES } from "../file/safetensors.ts";
import type { Cloak } from "./cloak/cloak.ts";
import { cloakedRows, cloakedSpecs, coveredBytes, maskedBytes, uncoveredRows, unmasked } from "./cloak/layer.ts";
import { refuse, type SectionSpec, type SectionTensor, type SnapshotFile, type TensorSpec } from "./format.ts";
import { readReduced, reducedForm, reducedInts } from "./reduced.ts";
import { bytesOf, packRows, ROW_DTYPES, unpackRows } from "./rows.ts";

/** What is saved beside the cache. */
export interface LayerExtras {
  readonly predicted?: readonly Float32Array[];
  readonly certificates?: readonly LayerCertificate[];
}

/** A layer as it was saved. Lists are per KV head. */
export interface SavedLayer {
  readonly positions: readonly Int32Array[];
  readonly logical?: readonly Int32Array[];
  readonly keys: readonly Float32Array[];
  readonly values: readonly Float32Array[];
  /** What is packed of each head. */
  readonly packed?: readonly (PackedHead | undefined)[];
  /** What attention adds to the rows' logits, where a refit had it so. */
  readonly bias?: readonly (Float32Array | undefined)[];
  /** What each head has lost of its keys, or reads by; keys are whole, with zeros. */
  readonly reduced?: readonly ReducedHead[];
  readonly predicted?: readonly Float32Array[];
  readonly certificate?: LayerCertificate;
}

/** The name of a layer's section. */
export function layerSection(layer: number): string {
  return `layer.${layer}`;
}

/** A tensor and its bytes, which are made when they are needed. */
type Lazy = TensorSpec & { bytes(): Uint8Array };

/** The section of one layer; its rows are copied, and cloaked where there is a cloak, when their turn comes. */
export function layerSpec(cache: RaggedCache, layer: number, extras: LayerExtras, cloak?: Cloak): SectionSpec {
  const { kvHeads, headDim } = layerShape(cache.shape, layer), type = cache.typeOf(layer);
  const rows = cache.layerEntries(layer);
  const heads = Array.from({ length: kvHeads }, (_, head) => head), index = cache.globals.indexOf(layer);
  const ints = (name: string, of: (head: number) => Int32Array): Lazy => ({
    ...{ name, dtype: "I32", shape: [rows] },
    bytes: () => bytesOf(concatenate(heads.map(of), Int32Array)),
  });
  const lazy: Lazy[] = [
    {
      ...{ name: "lengths", dtype: "I32", shape: [kvHeads] },
      bytes: () => bytesOf(Int32Array.from(heads, (head) => cache.length(layer, head))),
    },
    ints("positions", (head) => cache.positions(layer, head)),
    ...(cache.realigned ? [ints("logical", (head) => cache.logicalPositions(layer, head))] : []),
    // Nothing is predicted or certified of a layer that looks back over a window.
    ...(index < 0 ? [] : predictedSpec(extras, index * kvHeads, kvHeads, rows)),
    ...(index < 0 ? [] : certificateSpec(extras.certificates?.[index])),
    ...reducedSpec(heads.map((head) => cache.reduced(layer, head)), headDim),
  ];
  const biased = cache.layerBiased(layer) > 0;
  const bias: TensorSpec[] = biased ? [{ name: "bias", dtype: "F32", shape: [rows] }] : [];
  const stored = [
    ...bias,
    ...cloak
      ? cloakedSpecs(kvHeads, cloakedRows(heads.map((head) => cache.length(layer, head))), headDim)
      : rowSpecs(type, countsOf(cache, layer), headDim),
  ];
  return {
    name: layerSection(layer),
    tensors: [...lazy, ...stored],
    async bytes() {
      const copied = await copyHeads(cache.rows(layer));
      const added = copied.map(({ keys, bias }) => bias ?? new Float32Array(keys.length / headDim));
      const biases = biased ? [bytesOf(concatenate(added, Float32Array))] : [];
      if (cloak) {
        const plain = [
          ...lazy.map((each) => each.bytes()),
          ...biases,
          ...await coveredBytes(cloak, layer, copied, headDim),
        ];
        return await maskedBytes(cloak, layer, [...lazy, ...stored].map(({ name }) => name), plain);
      }
      return [...lazy.map((each) => each.bytes()), ...biases, ...rowBytes(type, copied, headDim)];
    },
  };
}

/** Rows of all heads; of those that are packed how many each head has, and groups of keys. */
interface RowCounts {
  readonly kvHeads: number;
  readonly rows: number;
  readonly packed: number;
  readonly groups: number;
}

function countsOf(cache: RaggedCache, layer: number): RowCounts {
  const { kvHeads } = cache.shape;
  const packed = Array.from({ length: kvHeads }, (_, head) => cache.packed(layer, head));
  return { kvHeads, rows: cache.layerEntries(layer), ...packedCounts(packed) };
}

function packedCounts(heads: readonly number[]) {
  return { packed: addUp(heads), groups: addUp(heads.map((rows) => Math.ceil(rows / GROUP))) };
}

/** Wide numbers first, so that each lies at a multiple of its width. */
function rowSpecs(type: CacheType, { kvHeads, rows, packed, groups }: RowCounts, headDim: number): TensorSpec[] {
  const types = partsOf(type), width = packedWidth(headDim), specs: TensorSpec[] = [];
  for (const part of PARTS) {
    const rowType = types[part], one = ONE[part];
    const loose = rowType === "int4" ? rows - packed : rows;
    specs.push({ name: part, dtype: ROW_DTYPES[rowType], shape: [loose, headDim] });
    if (rowType === "int8") specs.push({ name: `${one}_scales`, dtype: "F32", shape: [rows] });
    if (rowType !== "int4") continue;
    const shape = part === "keys" ? [groups, width] : [packed, width / GROUP];
    specs.push({ name: `${one}_codes`, dtype: "U8", shape: [packed, width / 2] });
    specs.push({ name: `${one}_steps`, dtype: "F16", shape }, { name: `${one}_zeros`, dtype: "F16", shape });
  }
  if (packs(type)) specs.push({ name: "packed", dtype: "I32", shape: [kvHeads] });
  return byWidth(specs);
}

/** What {@link rowSpecs} names, in its order. */
function rowBytes(type: CacheType, heads: readonly CopiedRows[], headDim: number): Uint8Array[] {
  const types = partsOf(type), bytes = new Map<string, Uint8Array>();
  for (const part of PARTS) {
    const one = ONE[part], rowType = types[part];
    const first = (head: CopiedRows) => rowType === "int4" ? (head.packed?.rows ?? 0) * headDim : 0;
    const { numbers, scales } = packRows(heads.map((head) => head[part].subarray(first(head))), rowType, headDim);
    bytes.set(part, numbers);
    if (scales) bytes.set(`${one}_scales`, scales);
    const packed = heads.flatMap((head) => head.packed?.[part] ?? []);
    bytes.set(`${one}_codes`, concatenate(packed.map(({ codes }) => codes), Uint8Array));
    bytes.set(`${one}_steps`, joinedHalves(packed.map(({ scales }) => scales)));
    bytes.set(`${one}_zeros`, joinedHalves(packed.map(({ zeros }) => zeros)));
  }
  const packed = heads.map((head) => head.packed?.rows ?? 0);
  bytes.set("packed", bytesOf(Int32Array.from(packed)));
  const counts = { kvHeads: heads.length, rows: 0, ...packedCounts(packed) };
  return rowSpecs(type, counts, headDim).map(({ name }) => bytes.get(name)!);
}

/** What the names of a part's tensors begin with. */
const ONE = { keys: "key", values: "value" } as const satisfies Record<Part, string>;
const PARTS: readonly Part[] = ["keys", "values"];

function joinedHalves(parts: readonly Uint16Array[]): Uint8Array {
  return concatenate(parts.map(bytesOf), Uint8Array);
}

function byWidth(specs: readonly TensorSpec[]): TensorSpec[] {
  return [...specs].sort((a, b) => DTYPE_BYTES[b.dtype] - DTYPE_BYTES[a.dtype]);
}

function addUp(numbers: readonly number[]): number {
  return numbers.reduce((all, each) => all + each, 0);
}

function predictedSpec({ predicted }: LayerExtras, first: number, kvHeads: number, rows: number): Lazy[] {
  if (!predicted) return [];
  const bytes = () => bytesOf(concatenate(predicted.slice(first, first + kvHeads), Float32Array));
  return [{ name: "predicted", dtype: "F32", shape: [rows], bytes }];
}

function reducedSpec(heads: readonly ReducedHead[], headDim: number): Lazy[] {
  return reducedInts(heads, headDim).map(([spec, numbers]) => ({ ...spec, bytes: () => bytesOf(numbers) }));
}

/** Counts `[kvHeads, 3]`, figures `[kvHeads, 4 or 4 + 2 · group]`, masses `[kvHeads, group, window]`. */
function certificateSpec(certificate?: LayerCertificate): Lazy[] {
  if (!certificate) return [];
  const { heads, window } = certificate, group = heads[0].evictedMass.length;
  const figures = heads.map(figuresOf),
    counts = heads.flatMap(({ kept, evicted, unobserved }) => [kept, evicted, unobserved]);
  const masses = heads.flatMap(({ evictedMass }) => evictedMass.flatMap((each) => [...each]));
  const floats = (name: string, shape: number[], numbers: number[]): Lazy => ({
    ...{ name, dtype: "F64", shape },
    bytes: () => bytesOf(Float64Array.from(numbers)),
  });
  return [
    {
      name: "certificate_counts",
      dtype: "I32",
      shape: [heads.length, 3],
      bytes: () => bytesOf(Int32Array.from(counts)),
    },
    floats("certificate_figures", [heads.length, figures[0].length], figures.flat()),
    floats("certificate_masses", [heads.length, group, window], masses),
  ];
}

function figuresOf({ largestRisk, riskSum, valueNorm, projectedNorm = [] }: HeadCertificate): number[] {
  return [largestRisk, riskSum, ...[valueNorm, ...projectedNorm].flatMap(({ evicted, kept }) => [evicted, kept])];
}

/** What the reader of a layer goes by. */
export interface LayerForm {
  readonly shape: ModelShape;
  readonly type: CacheType;
  /** Tokens that were read. */
  readonly tokens: number;
  /** What its rows are cloaked by, if they are. */
  readonly cloak?: Cloak;
}

/**
 * Reads one layer's section and checks all that can be checked of it.
 * @throws PalisadeError input `snapshot.damaged`, `snapshot.layout`, where = the section.
 */
export async function readLayer(file: SnapshotFile, layer: number, form: LayerForm): Promise<SavedLayer> {
  const name = layerSection(layer), { tokens } = form;
  const { kvHeads, headDim } = layerShape(form.shape, layer), type = form.shape.convolved?.[layer] ? "f32" : form.type;
  const fail = (reason: string): never => {
    throw refuse("layout", file.name, name, `section ${name}: ${reason}`);
  };
  const rows = checkLayout(file.layout(name), observedShape(form.shape, layer), { type, cloak: form.cloak }, fail);
  const read = await file.read(name), tensors = form.cloak ? await unmasked(form.cloak, layer, read) : read;
  const lengths = ints(tensors.get("lengths")!);
  if (lengths.some((length) => length < 0 || length > tokens) || sum(lengths) !== rows) {
    fail(`heads of ${[...lengths].slice(0, 8)} rows, which are ${rows}`);
  }
  const split = <A extends Int32Array | Float32Array>(all: A, width = 1) => cut(all, lengths, width) as A[];
  const positions = split(ints(tensors.get("positions")!)), logical = tensors.get("logical");
  const moved = logical && split(ints(logical)), predicted = tensors.get("predicted");
  for (const list of [...positions, ...moved ?? []]) if (!ascends(list, tokens)) fail("positions don't ascend");
  const window = windowOf(form.shape, layer), source = sourceOf(form.shape, layer);
  if (source !== layer && rows > 0) fail(`it looks at the rows of layer ${source}, and has ${rows} of its own`);
  if (source === layer && window < Infinity && !positions.every((list) => isRun(list, tokens, window))) {
    fail(`it looks back ${window} tokens, but these are not the last ones`);
  }
  if (form.cloak && tensors.get("keys")!.shape[0] !== cloakedRows(lengths)) {
    fail("cloaked rows that don't fit its heads");
  }
  const rowsOf = form.cloak
    ? await uncoveredRows(form.cloak, layer, tensors, { lengths, headDim })
    : plainRows(tensors, { lengths, headDim, type }, fail);
  const bias = tensors.get("bias"), added = bias && split(new Float32Array(bias.bytes.buffer));
  if (added?.some((list) => !list.every(Number.isFinite))) fail("a bias is no finite number");
  const certificate = tensors.has("certificate_counts") ? certificateOf(layer, kvHeads, tensors) : undefined;
  return {
    positions,
    ...(moved && { logical: moved }),
    ...rowsOf,
    // Zeros stand for a head that was not refitted.
    ...(added && { bias: added.map((list) => list.some((bias) => bias !== 0) ? list : undefined) }),
    ...(tensors.has("channels") && { reduced: readReduced(tensors, lengths, headDim, fail) }),
    ...(predicted && { predicted: split(new Float32Array(predicted.bytes.buffer)) }),
    ...(certificate && { certificate }),
  };
}

/** The rows of each head, and of those that are packed what they are packed as. */
function plainRows(
  tensors: ReadonlyMap<string, SectionTensor>,
  { lengths, headDim, type }: { readonly lengths: Int32Array; readonly headDim: number; readonly type: CacheType },
  fail: (reason: string) => never,
) {
  const types = partsOf(type), packed = packs(type) ? ints(tensors.get("packed")!) : new Int32Array(lengths.length);
  const { packed: all, groups } = packedCounts([...packed]);
  const room = tensors.get("key_steps") ?? undefined, codes = tensors.get("key_codes") ?? tensors.get("value_codes");
  if (packed.some((rows, head) => rows < 0 || rows > lengths[head]) || (codes && codes.shape[0] !== all)) {
    fail(`heads with ${[...packed].slice(0, 8)} packed rows, which don't fit`);
  }
  if (room && room.shape[0] !== groups) fail(`${room.shape[0]} groups of packed keys: want ${groups}`);
  const heads: { rows: number; keys?: PackedPart; values?: PackedPart }[] = Array.from(packed, (rows) => ({ rows }));
  const rowsOf = (part: Part): Float32Array[] => {
    const one = ONE[part], isPacked = types[part] === "int4";
    const floats = unpackRows(tensors.get(part)!.bytes, tensors.get(`${one}_scales`)?.bytes, types[part], headDim);
    const loose = cut(floats, lengths.map((rows, head) => isPacked ? rows - packed[head] : rows), headDim);
    if (!isPacked) return loose as Float32Array[];
    const [codes, steps, zeros] = ["codes", "steps", "zeros"].map((name) => tensors.get(`${one}_${name}`)!.bytes);
    const halves = [steps, zeros].map((bytes) => new Uint16Array(bytes.slice().buffer));
    let code = 0, parameter = 0;
    return heads.map((head, h) => {
      const each = emptyPart(part, head.rows, headDim), [scales, lows] = halves;
      each.codes.set(codes.subarray(code, code += each.codes.length));
      each.scales.set(scales.subarray(parameter, parameter + each.scales.length));
      each.zeros.set(lows.subarray(parameter, parameter += each.zeros.length));
      if ([...each.scales, ...each.zeros].some((half) => (half & 0x7c00) === 0x7c00)) {
        fail("a step is no finite number");
      }
      if (head.rows > 0) head[part] = each;
      return concatenate([unpackPacked(part, each, head.rows, headDim), loose[h] as Float32Array], Float32Array);
    });
  };
  const rows = { keys: rowsOf("keys"), values: rowsOf("values") };
  return packs(type) ? { ...rows, packed: heads.map((head) => head.rows > 0 ? head : undefined) } : rows;
}

/** Types and shapes of a layer's tensors; the number of its rows. */
function checkLayout(
  layout: ReadonlyMap<string, TensorSpec>,
  { heads, kvHeads, headDim }: AttentionShape,
  { type, cloak }: Pick<LayerForm, "type" | "cloak">,
  fail: (reason: string) => never,
): number {
  const rows = layout.get("positions")?.shape[0] ?? -1, [, figures] = layout.get("certificate_figures")?.shape ?? [];
  const group = heads / kvHeads, [, , window] = layout.get("certificate_masses")?.shape ?? [];
  const counts = {
    ...{ kvHeads, rows },
    packed: (layout.get("key_codes") ?? layout.get("value_codes"))?.shape[0] ?? 0,
    groups: layout.get("key_steps")?.shape[0] ?? 0,
  };
  const list = (name: string, dtype: TensorSpec["dtype"]): TensorSpec => ({ name, dtype, shape: [rows] });
  const certificate: TensorSpec[] = [
    { name: "certificate_counts", dtype: "I32", shape: [kvHeads, 3] },
    { name: "certificate_figures", dtype: "F64", shape: [kvHeads, figures === 4 ? 4 : 4 + 2 * group] },
    { name: "certificate_masses", dtype: "F64", shape: [kvHeads, group, window] },
  ];
  const needed: TensorSpec[] = [
    { name: "lengths", dtype: "I32", shape: [kvHeads] },
    list("positions", "I32"),
    // How many rows the heads have once cloaked is known when their lengths are read.
    ...(cloak ? cloakedSpecs(kvHeads, layout.get("keys")?.shape[0] ?? -1, headDim) : rowSpecs(type, counts, headDim)),
    ...(layout.has("certificate_counts") ? certificate : []),
    ...(layout.has("channels") ? reducedForm(kvHeads, headDim) : []),
  ];
  const known = [...needed, list("logical", "I32"), list("predicted", "F32"), list("bias", "F32")];
  for (const { name } of needed) if (!layout.has(name)) fail(`it has no ${name}`);
  for (const [name, { dtype, shape }] of layout) {
    const wanted = known.find((each) => each.name === name);
    if (!wanted) fail(`nobody knows what ${name} is`);
    if (dtype !== wanted!.dtype || `${shape}` !== `${wanted!.shape}`) {
      fail(`${name} is ${dtype} of ${shape.join(" × ")}: want ${wanted!.dtype} of ${wanted!.shape.join(" × ")}`);
    }
  }
  return rows;
}

function ints({ bytes }: SectionTensor): Int32Array {
  return new Int32Array(bytes.buffer);
}

function sum(lengths: Int32Array): number {
  return lengths.reduce((all, length) => all + length, 0);
}

/** Each head's part of `all`, `[length, width]`; views. */
function cut(all: Int32Array | Float32Array, lengths: Int32Array, width: number): (Int32Array | Float32Array)[] {
  let start = 0;
  return Array.from(lengths, (length) => all.subarray(start, start += length * width));
}

/** Whether a window layer holds the last positions that it can look back to, without a gap. */
function isRun(positions: Int32Array, end: number, window: number): boolean {
  const first = end - positions.length;
  return positions.length === Math.min(end, window - 1) && positions.every((position, i) => position === first + i);
}

function ascends(positions: Int32Array, end: number): boolean {
  return positions.every((position, i) => position < end && position > (i === 0 ? -1 : positions[i - 1]));
}

function certificateOf(
  layer: number,
  kvHeads: number,
  tensors: ReadonlyMap<string, SectionTensor>,
): LayerCertificate {
  const counts = ints(tensors.get("certificate_counts")!),
    { shape: [, group, window], bytes } = tensors.get("certificate_masses")!;
  const masses = new Float64Array(bytes.buffer),
    figures = new Float64Array(tensors.get("certificate_figures")!.bytes.buffer);
  const width = figures.length / kvHeads;
  return {
    layer,
    window,
    heads: Array.from({ length: kvHeads }, (_, head) => {
      const [kept, evicted, unobserved] = counts.subarray(3 * head, 3 * head + 3);
      const [largestRisk, riskSum, ...norms] = figures.subarray(width * head, width * (head + 1));
      const maxima = Array.from(
        { length: norms.length / 2 },
        (_, i) => ({ evicted: norms[2 * i], kept: norms[2 * i + 1] }),
      );
      const mass = (member: number) =>
        masses.slice((head * group + member) * window, (head * group + member + 1) * window);
      return {
        ...{ kept, evicted, unobserved, largestRisk, riskSum },
        evictedMass: Array.from({ length: group }, (_, member) => mass(member)),
        valueNorm: maxima[0],
        projectedNorm: maxima.length > 1 ? maxima.slice(1) : undefined,
      };
    }),
  };
}
