/** A thread's part of the rows of every layer, and the commands that other threads have for it. */
import type { AttentionOutputs, AttentionWants, CopiedRows } from "../../core/backend/interface.ts";
import { ALL_CACHE_TYPES, type CacheType } from "../../core/cache/entry_type.ts";
import type { PackedHead, PackedPart } from "../../core/cache/packed.ts";
import type { Needs } from "../../core/policy/policy.ts";
import type { AttentionShape } from "../../core/shape.ts";
import type { Tensors } from "../../core/backend/tensor.ts";
import type { WasmBackend } from "../backend.ts";
import { type HeadRun, putHeads, type TokenRun } from "./heads.ts";
import type { ThreadPool } from "./pool.ts";
import { REDUCTIONS, type WasmRows } from "../rows.ts";
import {
  commandsFrom,
  type Field,
  flag,
  floats,
  ints,
  json,
  list,
  number,
  oneOf,
  optionalFloats,
  optionalInts,
  optionalNumber,
  record,
  someOf,
} from "./command.ts";

/** The rows one thread holds, by id. */
export class RowsService {
  readonly backend: WasmBackend;
  readonly #rows = new Map<number, WasmRows>();

  constructor(backend: WasmBackend) {
    this.backend = backend;
  }

  /** Makes empty rows for `kvHeads` KV heads of the layer `whole`, with the query heads that read them, and their null logits. */
  create(
    id: number,
    kvHeads: number,
    reserve: number,
    type: CacheType,
    whole: AttentionShape,
    nullLogits?: Float32Array,
  ): void {
    const heads = kvHeads * whole.heads / whole.kvHeads, nulls = nullLogits && { nullLogits: nullLogits.slice() };
    const shape = { ...whole, heads, kvHeads, ...nulls };
    this.set(id, this.backend.createPart(shape, reserve, type, whole));
  }

  set(id: number, rows: WasmRows): void {
    this.#rows.set(id, rows);
  }

  get(id: number): WasmRows {
    const rows = this.#rows.get(id);
    if (!rows) throw new RangeError(`No rows ${id} in this thread`);
    return rows;
  }

  /** Rows that could not be made have nothing to give back. */
  free(id: number): void {
    this.#rows.get(id)?.free();
    this.#rows.delete(id);
  }
}

/** One call of `ROWS.prefill`. */
export interface AttentionCall {
  readonly queries: Float32Array;
  readonly count: number;
  /** As `AttentionWants`; no row weights: an empty list. */
  readonly want: Required<AttentionWants>;
  readonly masked: boolean;
  /** Rows behind the queries' own, which they don't see. */
  readonly behind: number;
}

export interface AttentionGiven {
  readonly output: Float32Array;
  readonly extras: Pick<AttentionOutputs, "columnSum" | "columnMax" | "logSumExp">;
}

/** Carries out such a call on rows of this thread. */
export async function attend(rows: WasmRows, call: AttentionCall): Promise<AttentionGiven> {
  const { queries, count, want: { rowWeights, ...others }, masked, behind } = call;
  const want = rowWeights.length > 0 ? { ...others, rowWeights } : others;
  const { output, ...extras } =
    await (masked ? rows.prefillAttention(queries, count, want, behind) : rows.unmaskedAttention(queries, count, want));
  return { output, extras };
}

/** Room for what attention of `count` queries over `length` rows of all heads gives. */
export function attentionRoom(
  tensors: Tensors<Float32Array>,
  { heads, headDim }: AttentionShape,
  { count, length }: { readonly count: number; readonly length: number },
  { columnSum = false, columnMax = false, logSumExp = false }: AttentionWants,
): AttentionOutputs<Float32Array> {
  const columns = (wanted: boolean) => wanted ? new Float32Array(heads * length) : undefined;
  return {
    output: tensors.room(count * heads * headDim),
    columnSum: columns(columnSum),
    columnMax: columns(columnMax),
    logSumExp: logSumExp ? new Float32Array(count * heads) : undefined,
  };
}

/** Puts what a thread gave for some heads and tokens into its places; columns are the caller's to put. */
export function putAttention(
  { output, extras: { logSumExp } }: AttentionGiven,
  to: AttentionOutputs<Float32Array>,
  { heads, kvHeads, headDim }: AttentionShape,
  runs: readonly HeadRun[],
  tokens?: TokenRun,
): void {
  putHeads(output, to.output, heads * headDim, kvHeads, runs, tokens);
  if (logSumExp) putHeads(logSumExp, to.logSumExp!, heads, kvHeads, runs, tokens);
}

const command = commandsFrom<RowsService>(1);
const id = number, count = number;
const shape = record({ heads: number, kvHeads: number, headDim: number, reach: optionalNumber });
const optionalBytes: Field<Uint8Array | undefined> = {
  write: (value, { arrays }) => arrays.push(value),
  read: (from) => from.array() as Uint8Array | undefined,
};
/** Copied, as halves need not stand where bytes may. */
const halves = {
  write: (value: Uint16Array, to: Parameters<typeof optionalBytes.write>[1]) =>
    optionalBytes.write(new Uint8Array(value.buffer, value.byteOffset, value.byteLength), to),
  read: (from: Parameters<typeof optionalBytes.read>[0]) =>
    new Uint16Array(Uint8Array.from(optionalBytes.read(from)!).buffer),
};
const packedPart: Field<PackedPart | undefined> = {
  write(part, to) {
    optionalBytes.write(part?.codes, to);
    if (!part) return;
    for (const each of [part.scales, part.zeros]) halves.write(each, to);
  },
  read(from) {
    const codes = optionalBytes.read(from);
    return codes && { codes: Uint8Array.from(codes), scales: halves.read(from), zeros: halves.read(from) };
  },
};
const packed: Field<PackedHead | undefined> = {
  write(head, to) {
    optionalNumber.write(head?.rows, to);
    if (!head) return;
    for (const part of [head.keys, head.values]) packedPart.write(part, to);
  },
  read(from) {
    const rows = optionalNumber.read(from);
    if (rows === undefined) return undefined;
    const keys = packedPart.read(from), values = packedPart.read(from);
    return { rows, ...(keys && { keys }), ...(values && { values }) };
  },
};
const copied: Field<CopiedRows> = {
  write({ keys, values, bias, packed: rows }, to) {
    for (const part of [keys, values]) floats.write(part, to);
    optionalFloats.write(bias, to);
    packed.write(rows, to);
  },
  read(from) {
    const keys = floats.read(from), values = floats.read(from), bias = optionalFloats.read(from);
    const rows = packed.read(from);
    return { keys, values, ...(bias && { bias }), ...(rows && { packed: rows }) };
  },
};

/** On the heads of one thread; see `LayerRows`. Lists have one entry per head. */
export const ROWS = {
  create: command(
    { id, kvHeads: number, reserve: number, type: oneOf(ALL_CACHE_TYPES), whole: shape, nullLogits: optionalFloats },
    {},
    (service, { id, kvHeads, reserve, type, whole, nullLogits }) =>
      service.create(id, kvHeads, reserve, type, whole, nullLogits),
  ),
  append: command(
    { id, keys: floats, values: floats, count },
    {},
    (service, { id, keys, values, count }) => service.get(id).append(keys, values, count),
  ),
  /** Calls one after another: a thread hears of the next command only after its answer to this one. */
  prefill: command(
    {
      calls: list(record({
        id,
        queries: floats,
        count,
        want: record({ columnSum: flag, columnMax: flag, logSumExp: flag, rowWeights: floats }),
        masked: flag,
        behind: number,
      })),
    },
    { given: list(record({ output: floats, extras: someOf(["columnSum", "columnMax", "logSumExp"]) })) },
    async (service, { calls }) => {
      const given: AttentionGiven[] = [];
      for (const { id, ...call } of calls) given.push(await attend(service.get(id), call));
      return { given };
    },
  ),
  decode: command(
    { id, queries: floats, count, probabilities: flag },
    { output: floats, probabilities: list(floats) },
    async (service, { id, queries, count, probabilities: wanted }) => {
      const { output, probabilities = [] } = await service.get(id)
        .decodeAttention(queries, count, { probabilities: wanted });
      return { output, probabilities };
    },
  ),
  observe: command(
    { id, queries: floats, window: number, needs: json<Pick<Needs, "window" | "kernel" | "rows">>() },
    { seen: someOf([...REDUCTIONS, "keys", "values"]) },
    async (service, { id, queries, window, needs }) => ({
      seen: await service.get(id).observe(queries, window, needs),
    }),
  ),
  norms: command(
    { id, wo: floats, width: number, kind: oneOf(["l1", "l2"]) },
    { norms: floats },
    async (service, { id, wo, width, kind }) => ({ norms: await service.get(id).valueNorms(wo, width, kind) }),
  ),
  refit: command(
    { id, kvHead: number, values: floats, bias: floats },
    {},
    (service, { id, kvHead, values, bias }) => service.get(id).refit(kvHead, { values, bias }),
  ),
  thin: command(
    { id, kvHead: number, channels: ints, recent: number },
    {},
    (service, { id, kvHead, ...keys }) => service.get(id).thin(kvHead, keys),
  ),
  foresee: command(
    { id, kvHead: number, channels: ints, entries: number, sinks: number, recent: number },
    {},
    (service, { id, kvHead, ...foresight }) => service.get(id).foresee(kvHead, foresight),
  ),
  pack: command({ id }, {}, (service, { id }) => service.get(id).pack()),
  takePacked: command({ id, heads: list(packed) }, {}, (service, { id, heads }) => service.get(id).pack(heads)),
  compact: command({ id, kept: list(ints) }, {}, (service, { id, kept }) => service.get(id).compact(kept)),
  truncate: command({ id, lengths: list(number) }, {}, (service, { id, lengths }) => service.get(id).truncate(lengths)),
  rotate: command(
    {
      id,
      moves: list(ints),
      rotation: record({ pairs: oneOf(["interleaved", "half"]), rotated: number, frequencies: list(number) }),
    },
    {},
    (service, { id, moves, rotation: { frequencies, ...rotation } }) =>
      service.get(id).rotateKeys(moves, { ...rotation, frequencies: Float64Array.from(frequencies) }),
  ),
  clone: command({ id, copy: number }, {}, async (service, { id, copy }) => {
    service.set(copy, await service.get(id).clone());
  }),
  copy: command(
    { id, kvHead: number, wanted: optionalInts },
    { rows: copied },
    (service, { id, kvHead, wanted }) => ({ rows: service.get(id).copyNow(kvHead, wanted) }),
  ),
  /** Rows of each head, all of them empty. */
  fill: command({ id, heads: list(copied) }, {}, (service, { id, heads }) => service.get(id).fill(heads)),
  free: command({ id }, {}, (service, { id }) => service.free(id)),
  /** With capacity slack. */
  bytes: command({ id }, { allocated: number }, (service, { id }) => ({ allocated: service.get(id).allocatedBytes })),
  /** Of all rows. */
  memory: command(
    {},
    { allocatedBytes: number, highWaterBytes: number, wasmBytes: number },
    (service) => service.backend.memory(),
  ),
};

/** Frees the rows `id` in other threads; one that has ended has lost its memory with it. */
export function freeRows(
  pool: Pick<ThreadPool, "tell">,
  places: readonly { readonly rank: number }[],
  id: number,
): void {
  for (const { rank } of places) {
    try {
      pool.tell(rank, ROWS.free, { id });
    } catch {
      // Nothing is left to free.
    }
  }
}
