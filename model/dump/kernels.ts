/**
 * Dumps measured by a backend's kernels instead of core's plain loops: window, columns and value norms, a KV head at a
 * time, so that one head is copied and no layer. Everything else of an observation is core's own. Sums are rounded
 * otherwise than the plain ones; the decisions are the same, as they are when a model is read.
 */
import { ColumnReductions } from "../../core/backend/columns.ts";
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import { concatenate } from "../../core/concatenate.ts";
import { type LayerDump, observeDump, splitHeads, windowQueries } from "../../core/dump/evict.ts";
import type { DumpLayers, MeasureDump } from "../../core/dump/layers.ts";
import type { Budget, Needs, Observation, Policy } from "../../core/policy/policy.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { breathe, hold } from "../../runtime/breathe.ts";
import { type HostBackendChoice, pickBackend } from "../device.ts";

/** Multiplications of a layer from which kernels win back what their start costs: some 20 ms. */
const WORTH = 2e7;
/** Queries whose columns are measured at once. */
const CHUNK = 256;

/** What a backend has kernels for. */
type Measured = Pick<Needs, "window" | "valueNorms" | "columnSum" | "columnMax">;

/**
 * How the layers of a dump are measured for `policy`; undefined: plainly. `auto` takes the kernels where they are faster,
 * `wasm` always.
 * @throws PalisadeError `backend.missing` when `wasm` can't start.
 */
export async function measureBy(
  choice: HostBackendChoice,
  dump: DumpLayers,
  { needs }: Pick<Policy, "needs">,
  { explain, signal }: { readonly explain?: boolean; readonly signal?: AbortSignal } = {},
): Promise<MeasureDump | undefined> {
  if (choice === "ts" || (choice === "auto" && workOf(dump, needs, explain) < WORTH)) return undefined;
  return measureOn(await pickBackend(choice), signal);
}

/** Multiplications that kernels could take over, in a layer; a model's width is taken for that of its heads. */
function workOf({ shape, length }: DumpLayers, needs: Needs, explain = false): number {
  const { heads, kvHeads, headDim } = shape, each = heads * headDim;
  const queries = (needs.window || explain ? 32 : 0) + (needs.columnSum || needs.columnMax ? length / 2 : 0);
  const norms = (needs.valueNorms ? 1 : 0) + (explain ? heads / kvHeads : 0);
  return each * length * (queries + norms * each);
}

/** Measures layers on `backend`, which lets the event loop turn between heads. */
export function measureOn(backend: Backend, signal?: AbortSignal): MeasureDump {
  return async (dump, layer, budget, needs) => {
    // Computed from attention and values together, which no kernel does.
    if (needs.dropErrors) return hold(() => observeDump(dump, layer, budget, needs));
    const { window, valueNorms, columnSum, columnMax, ...others } = needs;
    const parts: Partial<Observation>[] = [];
    if (window || valueNorms || columnSum || columnMax) {
      for (const head of headsOf(dump, budget, needs)) {
        await breathe(signal);
        parts.push(await measureHead(backend, head, budget, needs));
      }
    }
    return { ...hold(() => observeDump(dump, layer, budget, others)), ...joined(parts) };
  };
}

/** One KV head, and the query heads of its group. */
interface Head {
  readonly shape: AttentionShape;
  /** `[length, headDim]`. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** `[window, group, headDim]`, where the window is looked at. */
  readonly window?: Float32Array;
  /** `[length, group, headDim]`, where columns are. */
  readonly queries?: Float32Array;
  /** `[width, group · headDim]`, where values are weighed. */
  readonly wo?: Float32Array;
}

/** The heads of a layer, one after another. What `needs` asks for and the dump hasn't is refused as `observeDump` does. */
function* headsOf(dump: LayerDump, { model, length, window }: Budget, needs: Measured): Generator<Head> {
  const { heads, kvHeads, headDim } = model, group = heads / kvHeads, shape = { heads: group, kvHeads: 1, headDim };
  const attends = needs.window || needs.columnSum || needs.columnMax, nothing = new Float32Array(length * headDim);
  const rows = (all: Float32Array, wanted: unknown, name: string) => {
    return wanted ? splitHeads(all, kvHeads, length * headDim, name) : undefined;
  };
  const keys = rows(dump.keys, attends, "keys"), values = rows(dump.values, needs.valueNorms, "values");
  const queries = attends && splitHeads(dump.queries, kvHeads, group * dump.queryRows * headDim, "queries");
  if (needs.valueNorms && !dump.wo) throw new RangeError("Dump has no output projection: the policy weighs values");
  for (let h = 0; h < kvHeads; h++) {
    const own = queries && { queries: queries[h], queryRows: dump.queryRows };
    const last = (count: number) => windowQueries({ ...dump, ...own! }, shape, count);
    yield {
      shape,
      keys: keys?.[h] ?? nothing,
      values: values?.[h] ?? nothing,
      ...(needs.window && { window: last(window) }),
      ...((needs.columnSum || needs.columnMax) && { queries: last(length) }),
      ...(needs.valueNorms && { wo: columnsOf(dump.wo!, heads * headDim, h * group * headDim, group * headDim) }),
    };
  }
}

/** `count` columns of a matrix from `first` on. */
function columnsOf(matrix: Float32Array, width: number, first: number, count: number): Float32Array {
  const rows = matrix.length / width, columns = new Float32Array(rows * count);
  for (let row = 0; row < rows; row++) {
    columns.set(matrix.subarray(row * width + first, row * width + first + count), row * count);
  }
  return columns;
}

/** What `needs` asks of one head. */
async function measureHead(backend: Backend, head: Head, { length, window }: Budget, needs: Measured) {
  const { shape, keys, values, wo } = head, { tensors } = backend;
  const rows = backend.createRows(shape, length);
  try {
    const columns = head.queries
      ? await measureColumns(backend, rows, head, needs)
      : void rows.append(tensors.upload(keys), tensors.upload(values), length);
    const seen = head.window && await hold(() => rows.observe(tensors.upload(head.window!), window, needs));
    const width = wo && wo.length / (shape.heads * shape.headDim);
    const valueNorms = wo && await hold(() => rows.valueNorms(wo, width!, needs.valueNorms));
    return { ...columns, ...seen, ...(valueNorms && { valueNorms }) };
  } finally {
    rows.free();
  }
}

/** Appends the head's rows, and measures all queries' columns on the way, as a reader does. */
async function measureColumns(
  { tensors }: Backend,
  rows: LayerRows,
  { shape: { heads, headDim }, keys, values, queries }: Head,
  needs: Measured,
): Promise<Partial<Observation>> {
  const length = keys.length / headDim, columns = new ColumnReductions(needs, heads, length);
  for (let first = 0; first < length; first += CHUNK) {
    const end = Math.min(length, first + CHUNK), count = end - first;
    const part = (all: Float32Array, each: number) => tensors.upload(all.slice(first * each, end * each));
    rows.append(part(keys, headDim), part(values, headDim), count);
    const { output, ...seen } = await hold(() =>
      rows.prefillAttention(part(queries!, heads * headDim), count, columns.want)
    );
    tensors.free(output);
    columns.add(seen, end);
  }
  return columns.result();
}

/** The heads' parts, one behind another. */
function joined(parts: readonly Partial<Observation>[]): Partial<Observation> {
  const names = Object.keys(parts[0] ?? {}) as "mean"[];
  return Object.fromEntries(
    names.filter((name) => parts[0][name]).map((name) => {
      return [name, concatenate(parts.map((part) => part[name]!), Float32Array)];
    }),
  );
}
