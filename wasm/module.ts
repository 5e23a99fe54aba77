/**
 * The kernels' WebAssembly module: which build, its memory, its buffers, its refusals. Only this room imports it.
 *
 * The modules are embedded as text rather than fetched or read: then the same import works from sources, from the
 * built package, in a browser bundle and in a single binary, with no file access and no path to get wrong.
 */
import { resourceError } from "../core/errors.ts";
import { hasRelaxedSimd } from "../runtime/features.ts";
import { wideVectors } from "../runtime/wide_vectors.ts";
import { RELAXED, SIMD128 } from "./kernels_bytes.ts";

/** What a caller may choose about the kernels. */
export interface WasmOptions {
  /** Which build runs; `auto` takes `relaxed` where the engine validates it. Default `auto`. */
  readonly simd?: "auto" | "simd128" | "relaxed";
  /** The most memory the kernels may take, bytes, 2 MiB … 4 GiB. Default 4 GiB. */
  readonly maximumBytes?: number;
  /** Whether the engine joins neighbouring vectors: some kernels have a form for that. Default as `wideVectors()` says. */
  readonly wideVectors?: boolean;
  /** Another build of the same module, for tests. */
  readonly module?: Uint8Array<ArrayBuffer>;
}

/** The module's functions (`wasm/kernels/src/lib.rs`): integers in, negative when refused. −1 as a handle: none. */
export interface KernelExports {
  join_vectors(joined: number): number;
  buffer_new(bytes: number): number;
  buffer_room(bytes: number): number;
  buffer_address(buffer: number): number;
  buffer_free(buffer: number): number;
  rows_new(heads: number, kvHeads: number, dim: number, reserve: number, kind: number, reach: number): number;
  rows_nulls(rows: number, logits: number): number;
  rows_free(rows: number): number;
  rows_pages(rows: number): number;
  rows_quads(rows: number): number;
  rows_pack(rows: number): number;
  rows_packed(rows: number, kvHead: number, keys: number, values: number): number;
  rows_take_packed(rows: number, kvHead: number, count: number, keys: number, values: number): number;
  rows_append(rows: number, keys: number, values: number, count: number): number;
  rows_attend(
    rows: number,
    queries: number,
    count: number,
    behind: number,
    outputs: number,
    logSumExp: number,
    columnSum: number,
    columnMax: number,
    probabilities: number,
    masked: number,
    rowWeights: number,
  ): number;
  rows_refit(rows: number, kvHead: number, values: number, bias: number): number;
  rows_thin(rows: number, kvHead: number, channels: number, count: number, recent: number): number;
  rows_thinned(rows: number, kvHead: number): number;
  rows_foresee(
    rows: number,
    kvHead: number,
    channels: number,
    count: number,
    entries: number,
    sinks: number,
    recent: number,
  ): number;
  rows_packed_bytes(rows: number): number;
  rows_bias(rows: number, kvHead: number, bias: number): number;
  rows_observe(
    rows: number,
    queries: number,
    window: number,
    kernel: number,
    mean: number,
    variance: number,
    entropy: number,
    pooledMean: number,
    pooledMax: number,
    mass: number,
    logSumExp: number,
  ): number;
  rows_norms(rows: number, wo: number, width: number, norms: number): number;
  rows_gram(rows: number, wo: number, width: number, gram: number): number;
  rows_gram_norms(rows: number, gram: number, norms: number): number;
  rows_compact(rows: number, kept: number, total: number, counts: number): number;
  rows_truncate(rows: number, lengths: number): number;
  rows_copy(rows: number, kvHead: number, wanted: number, count: number, keys: number, values: number): number;
  select_top(
    scores: number,
    second: number,
    shielded: number,
    entries: number,
    count: number,
    chosen: number,
  ): number;
  solve_symmetric(matrix: number, n: number, ridge: number, right: number, width: number): number;
  descend(
    matrix: number,
    n: number,
    right: number,
    x: number,
    work: number,
    least: number,
    steps: number,
  ): number;
  gate_scores(
    weights: number,
    bias: number,
    heads: number,
    width: number,
    epsilon: number,
    x: number,
    count: number,
    out: number,
  ): number;
  dense_weave(weights: number, kind: number, width: number): number;
  dense_row(weights: number, kind: number, width: number, woven: number, row: number, out: number): number;
  dense_multiply(
    weights: number,
    kind: number,
    outputs: number,
    width: number,
    arithmetic: number,
    inputs: number,
    count: number,
    bias: number,
    target: number,
    stride: number,
    offset: number,
    add: number,
  ): number;
  dense_norm(x: number, gains: number, width: number, count: number, epsilon: number, out: number): number;
  dense_head_norm(
    x: number,
    gains: number,
    stride: number,
    first: number,
    heads: number,
    width: number,
    count: number,
    epsilon: number,
    out: number,
  ): number;
  dense_add(a: number, b: number, length: number, out: number): number;
  dense_gate(gateUp: number, activation: number, width: number, count: number, out: number): number;
}

const WASM_PAGE = 65536;
/** What the module itself needs: the initial memory in wasm/kernels/build.rs. */
const INITIAL_PAGES = 32;
/** 4 GiB: all that 32-bit addresses reach. */
const MOST_PAGES = 65536;

/** The kernels never refuse for another reason than memory unless this room has a bug. */
const REFUSALS: Readonly<Record<number, string>> = {
  [-2]: "a handle that is not alive",
  [-3]: "a size that does not fit",
  [-4]: "a buffer too small",
  [-5]: "a number that the rows' type can't hold",
};

type Numbers = Float32Array | Float64Array | Int32Array | Uint8Array;

/** An instance of the kernels. */
export class Kernels {
  readonly call: KernelExports;
  readonly relaxed: boolean;
  readonly #memory: WebAssembly.Memory;

  private constructor(call: KernelExports, memory: WebAssembly.Memory, relaxed: boolean) {
    this.call = call;
    this.#memory = memory;
    this.relaxed = relaxed;
  }

  /** @throws PalisadeError `wasm.start` when the engine can't run the module, RangeError on a bad option. */
  static async start(options: WasmOptions = {}): Promise<Kernels> {
    const { simd = "auto", maximumBytes = MOST_PAGES * WASM_PAGE } = options;
    const maximum = Math.floor(maximumBytes / WASM_PAGE);
    if (!(maximum >= INITIAL_PAGES && maximum <= MOST_PAGES)) {
      throw new RangeError(`Cannot run kernels in ${maximumBytes} bytes: want 2097152 to 4294967296`);
    }
    const relaxed = simd === "relaxed" || (simd === "auto" && hasRelaxedSimd());
    try {
      const given = options.module, build = relaxed ? RELAXED : SIMD128;
      const module = await (given ? WebAssembly.compile(given) : compile(build));
      const memory = new WebAssembly.Memory({ initial: INITIAL_PAGES, maximum });
      const instance = await WebAssembly.instantiate(module, { env: { memory } });
      const call = instance.exports as unknown as KernelExports;
      call.join_vectors(Number(options.wideVectors ?? wideVectors().on));
      return new Kernels(call, memory, relaxed && !options.module);
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw resourceError("wasm.start", `Cannot start the WebAssembly kernels: ${reason}`, "wasm", cause);
    }
  }

  /** Bytes of the whole memory; never shrinks. */
  get memoryBytes(): number {
    return this.#memory.buffer.byteLength;
  }

  /** Passes on a handle, a count or 0; throws what a refusal stands for. */
  check(result: number, action: string): number {
    if (result >= 0) return result;
    if (result === -1) {
      const held = (this.memoryBytes / 2 ** 20).toFixed(0);
      throw resourceError("wasm.memory", `Cannot ${action}: the WebAssembly memory can't grow beyond ${held} MiB`);
    }
    throw new RangeError(`Cannot ${action}: the kernels refused ${REFUSALS[result] ?? `with ${result}`}`);
  }

  /** Runs `body` with buffers that live as long as it does. */
  withBuffers<T>(body: (buffers: Buffers) => T): T {
    const buffers = new Buffers(this);
    try {
      return body(buffers);
    } finally {
      buffers.free();
    }
  }

  /** The bytes at `address`, valid until the memory grows. */
  bytes(address: number, length: number): Uint8Array {
    return new Uint8Array(this.#memory.buffer, address >>> 0, length);
  }
}

/** Buffers inside the kernels' memory. Views are made anew for each copy, because they die when the memory grows. */
export class Buffers {
  readonly #kernels: Kernels;
  readonly #handles: number[] = [];

  constructor(kernels: Kernels) {
    this.#kernels = kernels;
  }

  /** A zeroed buffer; −1 when it is not `wanted`. */
  zeros(bytes: number, wanted = true): number {
    return wanted ? this.#made(bytes, this.#kernels.call.buffer_new) : -1;
  }

  /** A buffer that holds anything, for results that are written whole. */
  room(bytes: number): number {
    return this.#made(bytes, this.#kernels.call.buffer_room);
  }

  #made(bytes: number, make: (bytes: number) => number): number {
    const what = `make a buffer of ${bytes} bytes`;
    const handle = this.#kernels.check(bytes > 0x7fffffff ? -1 : make(bytes), what);
    this.#handles.push(handle);
    return handle;
  }

  /** A buffer with a copy of `numbers`. */
  from(numbers: Numbers): number {
    const handle = this.room(numbers.byteLength);
    this.write(handle, numbers);
    return handle;
  }

  /** Copies `numbers` to the front of a buffer. */
  write(handle: number, numbers: Numbers): void {
    const bytes = new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
    this.#view(handle, bytes.length).set(bytes);
  }

  /** Copies the front of a buffer into `numbers`. */
  read<N extends Numbers>(handle: number, numbers: N): N {
    const bytes = new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
    bytes.set(this.#view(handle, bytes.length));
    return numbers;
  }

  /** The `count` floats at the front of a buffer, valid until the memory grows. */
  floats(handle: number, count: number): Float32Array {
    const { buffer, byteOffset } = this.#view(handle, 4 * count);
    return new Float32Array(buffer, byteOffset, count);
  }

  free(): void {
    for (const handle of this.#handles.splice(0)) this.#kernels.call.buffer_free(handle);
  }

  #view(handle: number, bytes: number): Uint8Array {
    return this.#kernels.bytes(this.#kernels.call.buffer_address(handle), bytes);
  }
}

/** Compiled builds: a thread has two instances, and every backend that is started one more. */
const compiled = new Map<string, Promise<WebAssembly.Module>>();

function compile(base64: string): Promise<WebAssembly.Module> {
  const known = compiled.get(base64);
  if (known) return known;
  const module = WebAssembly.compile(decoded(base64));
  compiled.set(base64, module);
  return module;
}

/** By the places of the characters: an iterator would make tens of megabytes of them. */
function decoded(base64: string): Uint8Array<ArrayBuffer> {
  const characters = atob(base64), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}
