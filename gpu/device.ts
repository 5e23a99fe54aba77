/**
 * One WebGPU device as palisade uses it: commands are collected and submitted in batches, what was computed is read back
 * by promises, and every buffer is counted. Used by the backend (`gpu/backend/`) and the dense engine (`gpu/dense/`) of
 * the same device, so that both see each other's commands in order.
 *
 * Errors of a device come late. Whatever went wrong in the commands before a `read` rejects that read, once; rows and
 * weights that such commands wrote to are told so (`Owner`). A lost device rejects everything from then on.
 */
import type { PalisadeError } from "../core/errors.ts";
import { lostDevice, noMemory, refused } from "./errors.ts";
import { type GpuInfo, openDevice, type OpenedDevice, type OpenOptions } from "./open.ts";
import { BufferPool, type GpuBuffer, type GpuMemory } from "./pool.ts";
import { type Bound, type ShaderFile, type Stage, StageCache, type StageOptions } from "./stage.ts";

export type { GpuBuffer, GpuInfo, GpuMemory, OpenOptions, ShaderFile, Stage };

/** A part of a buffer that a stage sees; `start` a multiple of 256, default all of it. */
export interface BoundPart {
  readonly of: GpuBuffer;
  readonly start: number;
  /** Bytes. */
  readonly size: number;
}

/** What a stage runs on. */
export interface Call {
  /** `@binding(0)`: a read-only storage array of 32-bit words. Floats by `floatBits`. */
  readonly params: readonly number[];
  /** `@binding(1)` and on; `undefined` where the entry point has no such binding. */
  readonly buffers: readonly (GpuBuffer | BoundPart | undefined)[];
  /** Workgroups, at most 65535 in each direction. */
  readonly groups: readonly [number, number?, number?];
}

/** What a failed command may have left half written. */
export interface Owner {
  fail(error: Error): void;
}

/** How many stages, batches and waits there were: a plan is measured by it. Reads that overlap are one wait. */
export interface GpuCounts {
  readonly passes: number;
  readonly submits: number;
  /** Groups of buffers that were made for stages. */
  readonly bound: number;
  readonly waits: number;
}

/** Bytes of parameters that a batch may have. */
const PARAMS = 256 * 1024;
/** Stages after which a batch is submitted, so that the device has something to do. */
const STAGES = 64;
/** The same while something is being read. */
const STAGES_MEANWHILE = 8;
/** Words at the end of what is read back: see {@link GpuDevice.faults}. */
const FAULT_WORDS = 4;
/** Groups of bound buffers that are kept at most. */
const MOST_BOUND = 8192;

const FLOAT = new Float32Array(1);
const BITS = new Uint32Array(FLOAT.buffer);

/** Whether a group was made for the same, but for where the parameters lie. */
function isSame(bound: Bound, size: number, buffers: Call["buffers"]): boolean {
  return bound.size === size && bound.buffers.length === buffers.length && buffers.every((part, i) => {
    const other = bound.buffers[i];
    if (part === other) return true;
    return part && other && "of" in part && "of" in other && part.of === other.of && part.start === other.start &&
      part.size === other.size;
  });
}

function binding(part: GpuBuffer | BoundPart): GPUBufferBinding {
  return "of" in part ? { buffer: part.of.buffer, offset: part.start, size: part.size } : { buffer: part.buffer };
}

/** The 32 bits of a float, for {@link Call.params}. */
export function floatBits(x: number): number {
  FLOAT[0] = x;
  return BITS[0];
}

/** @throws PalisadeError `gpu.missing`. */
export async function openGpu(options?: OpenOptions): Promise<GpuDevice> {
  return new GpuDevice(await openDevice(options));
}

export class GpuDevice implements Disposable {
  readonly info: GpuInfo;
  /**
   * Words that stages set when they meet numbers that they can't store, read back with everything that is: word 0 is the
   * number of the owner whose commands they are (`listen`), 0 when all is well.
   */
  readonly faults: GpuBuffer;
  readonly #device: GPUDevice;
  #instance: unknown;
  readonly #pool: BufferPool;
  readonly #stages: StageCache;
  readonly #params = new Uint32Array(PARAMS / 4);
  readonly #ring: GpuBuffer;
  readonly #align: number;
  readonly #owners = new Map<number, () => Error>();
  /** Checks of batches and stages that no read has waited for yet. */
  readonly #checks = new Set<Promise<Error | undefined>>();
  #touched = new Set<Owner>();
  /** The stage of each group that is kept. */
  readonly #binders: Stage[] = [];
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #batch = 1;
  #used = 0;
  #stagesInBatch = 0;
  /** Reads that were not answered yet. */
  #reading = 0;
  #nextOwner = 1;
  #counts = { passes: 0, submits: 0, bound: 0, waits: 0 };
  #ended: PalisadeError | undefined;
  #closed = false;

  /** Takes the device over. */
  constructor({ device, info, instance }: OpenedDevice) {
    this.#device = device;
    this.#instance = instance;
    this.info = info;
    this.#align = device.limits.minStorageBufferOffsetAlignment;
    this.#pool = new BufferPool(device, info.maxBuffer);
    this.#stages = new StageCache(device, info.features, (checked) => this.#watch(checked));
    device.lost.then(({ message, reason }) => {
      if (!this.#closed) this.#ended ??= lostDevice(message || reason || "the driver says no more");
    });
    this.#openScopes();
    this.#ring = this.#pool.own(PARAMS);
    this.faults = this.#pool.own(4 * FAULT_WORDS);
  }

  get memory(): GpuMemory {
    return this.#pool.memory;
  }

  get counts(): GpuCounts {
    return { ...this.#counts };
  }

  /** Why nothing can be done any more; `undefined` while it can. */
  get ended(): PalisadeError | undefined {
    return this.#ended;
  }

  /** A number for commands whose faults `explain` puts in words; see {@link faults}. */
  listen(explain: () => Error): number {
    this.#owners.set(this.#nextOwner, explain);
    return this.#nextOwner++;
  }

  unlisten(owner: number): void {
    this.#owners.delete(owner);
  }

  /** A stage made for `constants`, compiled when first asked for; one that doesn't compile fails the next read. */
  stage(file: ShaderFile, options?: StageOptions): Stage {
    this.#check();
    return this.#stages.get(file, options);
  }

  /** A buffer to be destroyed; zeros. @throws PalisadeError `gpu.limit`. */
  own(bytes: number): GpuBuffer {
    this.#check();
    return this.#pool.own(bytes);
  }

  /** Really frees what {@link own} gave. Commands before still see it. */
  destroy(buffer: GpuBuffer): void {
    this.#pool.destroy(buffer, buffer.usedIn !== this.#batch);
  }

  /** A temporary buffer, to be given back; anything may be in it. @throws PalisadeError `gpu.limit`. */
  borrow(bytes: number): GpuBuffer {
    this.#check();
    return this.#pool.borrow(bytes);
  }

  /** The same, to be written at once: no command that was not submitted uses it, so none has to be. */
  borrowIdle(bytes: number): GpuBuffer {
    this.#check();
    return this.#pool.borrow(bytes, this.#batch);
  }

  /** Gives a borrowed buffer back for others. Commands before still see it. */
  giveBack(buffer: GpuBuffer): void {
    this.#pool.giveBack(buffer);
  }

  /** Runs a stage after all commands before it. */
  run(stage: Stage, { params, buffers, groups }: Call): void {
    this.#check();
    const [x, y = 1, z = 1] = groups;
    if (x === 0 || y === 0 || z === 0) return;
    const start = this.#place(params);
    const size = 4 * Math.max(4, params.length), bindGroup = this.#bound(stage, { start, size }, buffers);
    const pass = this.#pass ??= this.#encode().beginComputePass();
    pass.setPipeline(stage.pipeline);
    pass.setBindGroup(0, bindGroup);
    pass.dispatchWorkgroups(x, y, z);
    this.#counts.passes++;
    this.#stagesInBatch++;
    // Who waits for what came before has nothing more to give: the device would idle until this batch is full.
    if (this.#reading > 0 && this.#stagesInBatch >= STAGES_MEANWHILE) this.flush();
  }

  /** Copies `bytes`, all multiples of 4, after all commands before. */
  copy(from: GpuBuffer, start: number, to: GpuBuffer, at: number, bytes: number): void {
    this.#check();
    if (bytes === 0) return;
    this.#outsidePass().copyBufferToBuffer(from.buffer, start, to.buffer, at, bytes);
    from.usedIn = to.usedIn = this.#batch;
  }

  /** Sets `bytes` from `start` on to 0. */
  clear(buffer: GpuBuffer, start = 0, bytes = buffer.size): void {
    this.#check();
    if (bytes === 0) return;
    this.#outsidePass().clearBuffer(buffer.buffer, start, bytes);
    buffer.usedIn = this.#batch;
  }

  /** Writes numbers of this side, whole words, from byte `at` on. */
  write(buffer: GpuBuffer, at: number, data: ArrayBufferView<ArrayBuffer>): void {
    this.#check();
    // What is written comes before the commands that were not submitted yet.
    if (buffer.usedIn === this.#batch) this.flush();
    if (data.byteLength > 0) {
      this.#device.queue.writeBuffer(buffer.buffer, at, data.buffer, data.byteOffset, data.byteLength);
    }
  }

  /**
   * The bytes `start … start + bytes` as they are after all commands before. Reads of the same turn wait together.
   * @throws PalisadeError `gpu.lost`, `gpu.memory`, `gpu.shader`, `gpu.command`: what went wrong in the commands before.
   */
  async read(buffer: GpuBuffer, start: number, bytes: number): Promise<ArrayBuffer> {
    this.#check();
    const staging = this.#pool.staging(bytes + 4 * FAULT_WORDS);
    if (this.#reading++ === 0) this.#counts.waits++;
    try {
      this.copy(buffer, start, staging, 0, bytes);
      this.copy(this.faults, 0, staging, bytes, 4 * FAULT_WORDS);
      return await this.#map(staging, bytes);
    } finally {
      this.#reading--;
      this.destroy(staging);
      this.#letGo();
    }
  }

  /**
   * Waits until the device has taken all that was made and written so far, as after the weights of a tensor.
   * @throws PalisadeError `gpu.memory`, or what else went wrong.
   */
  async settled(): Promise<void> {
    this.#check();
    this.flush();
    this.#closeScopes();
    this.#openScopes();
    this.#counts.waits++;
    const failed = await this.#settle(this.#device.queue.onSubmittedWorkDone());
    await this.#checked();
    if (failed) throw await this.#reasonOf(refused(failed.message));
  }

  /** Submits what was collected. */
  flush(): void {
    if (!this.#encoder) return;
    this.#pass?.end();
    if (this.#used > 0) this.#device.queue.writeBuffer(this.#ring.buffer, 0, this.#params, 0, this.#used / 4);
    this.#device.queue.submit([this.#encoder.finish()]);
    this.#encoder = this.#pass = undefined;
    this.#counts.submits++;
    this.#closeScopes();
    this.#openScopes();
    this.#used = this.#stagesInBatch = 0;
    this.#batch++;
    this.#pool.sweep();
  }

  /** Tells `owner` when the batch at hand fails: its commands write to something of the owner's that stays. */
  touch(owner: Owner): void {
    this.#touched.add(owner);
  }

  /** Destroys all buffers and the device. What waits is rejected. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#pass?.end();
    this.#encoder = this.#pass = undefined;
    this.#pool.close();
    this.#ended ??= lostDevice("it was closed");
    this.#device.destroy();
    this.#letGo();
  }

  /** Lets the instance go once nothing waits any more: an answer that comes later would crash Dawn in Node. */
  #letGo(): void {
    if (this.#closed && this.#reading === 0) this.#instance = undefined;
  }

  async #map(staging: GpuBuffer, bytes: number): Promise<ArrayBuffer> {
    const batch = this.#batch;
    await Promise.resolve();
    if (batch === this.#batch) this.flush();
    const mapped = this.#settle(staging.buffer.mapAsync(1));
    await this.#checked();
    const failed = await mapped;
    if (failed) throw await this.#reasonOf(refused(failed.message));
    const all = staging.buffer.getMappedRange().slice(0);
    staging.buffer.unmap();
    const [owner] = new Uint32Array(all, bytes, FAULT_WORDS);
    if (owner !== 0) throw this.#fault(owner);
    return all.slice(0, bytes);
  }

  /** Waits for all checks of the commands before. @throws the first that failed; reads of the same turn see it too. */
  async #checked(): Promise<void> {
    const checks = [...this.#checks], errors = await Promise.all(checks);
    for (const check of checks) this.#checks.delete(check);
    const failed = errors.find((error) => error);
    if (failed) throw await this.#reasonOf(failed);
  }

  /** The loss of the device where that is behind a failure: it may be told a turn later. */
  async #reasonOf(failed: Error): Promise<Error> {
    if (!this.#ended) await new Promise((resolve) => setTimeout(resolve));
    return this.#ended ?? failed;
  }

  /** The error of a promise, or nothing; a device that is lost meanwhile may leave it unanswered. */
  async #settle(work: Promise<void>): Promise<Error | undefined> {
    const lost = this.#device.lost.then(({ message }) => lostDevice(message));
    return await Promise.race([work.then(() => undefined, (error) => error as Error), lost]);
  }

  #fault(owner: number): Error {
    this.clear(this.faults);
    return this.#owners.get(owner)?.() ?? refused("numbers that can't be stored");
  }

  #check(): void {
    if (this.#ended) throw this.#ended;
  }

  #encode(): GPUCommandEncoder {
    return this.#encoder ??= this.#device.createCommandEncoder();
  }

  #outsidePass(): GPUCommandEncoder {
    this.#pass?.end();
    this.#pass = undefined;
    return this.#encode();
  }

  /** Where the parameters lie in the ring, which is written just before the batch is submitted. */
  #place(params: readonly number[]): number {
    const bytes = Math.ceil(Math.max(16, params.length * 4) / this.#align) * this.#align;
    if (bytes > PARAMS) throw new RangeError(`${params.length} parameters are more than ${PARAMS / 4}`);
    if (this.#used + bytes > PARAMS || this.#stagesInBatch === STAGES) this.flush();
    const start = this.#used;
    this.#params.set(params, start / 4);
    this.#used += bytes;
    return start;
  }

  /**
   * Parameters and buffers as the stage sees them. Tokens of an answer take the same stages over the same buffers, and what
   * was made for one is kept for the next: it takes longer to make than all else of a stage.
   */
  #bound(stage: Stage, params: { start: number; size: number }, buffers: Call["buffers"]): GPUBindGroup {
    let hash = params.start + params.size;
    for (const part of buffers) {
      const buffer = part && ("of" in part ? part.of : part);
      if (buffer) buffer.usedIn = this.#batch;
      hash = Math.imul(hash, 31) + (buffer?.id ?? 0) | 0;
    }
    const alike = stage.bound.get(hash);
    const known = alike?.find((each) => each.start === params.start && isSame(each, params.size, buffers));
    if (known) return known.group;
    const group = this.#bind(stage, params, buffers);
    if (alike) alike.push({ ...params, buffers, group });
    else stage.bound.set(hash, [{ ...params, buffers, group }]);
    if (this.#binders.length === MOST_BOUND) {
      for (const each of this.#binders) each.bound.clear();
      this.#binders.length = 0;
    } else this.#binders.push(stage);
    return group;
  }

  #bind(stage: Stage, { start, size }: { start: number; size: number }, buffers: Call["buffers"]): GPUBindGroup {
    this.#counts.bound++;
    const entries = buffers.flatMap((part, i) => part ? [{ binding: i + 1, resource: binding(part) }] : []);
    const resource = { buffer: this.#ring.buffer, offset: start, size };
    return this.#device.createBindGroup({ layout: stage.layout, entries: [{ binding: 0, resource }, ...entries] });
  }

  #openScopes(): void {
    for (const filter of ["internal", "out-of-memory", "validation"] as const) this.#device.pushErrorScope(filter);
  }

  #closeScopes(): void {
    const touched = this.#touched, held = this.#pool.memory.bytes;
    this.#touched = new Set();
    const [validation, memory, internal] = [1, 2, 3].map(() => this.#device.popErrorScope().catch(() => null));
    const checked = Promise.all([memory, validation, internal]).then(([full, bad, own]) => {
      if (full) return noMemory(held, full.message);
      return bad ?? own ? refused((bad ?? own)!.message) : undefined;
    });
    this.#watch(checked, touched);
  }

  /** Keeps a check that failed until a read has waited for it; one that passed is forgotten. */
  #watch(checked: Promise<Error | undefined>, touched: ReadonlySet<Owner> = new Set()): void {
    const noted = checked.then((error) => {
      if (error) { for (const owner of touched) owner.fail(error); }
      else this.#checks.delete(noted);
      return error;
    });
    this.#checks.add(noted);
  }
}
