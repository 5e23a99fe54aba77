/**
 * Buffers on the device, counted. Temporary ones are kept for the next that are as large; what must be really freed
 * (rows, weights) is destroyed. A buffer that commands still wait to use is destroyed after they were submitted.
 */
import { tooLarge } from "./errors.ts";

/** `GPUBufferUsage`, whose object not every runtime has. */
export const USAGE = { mapRead: 0x1, copySrc: 0x4, copyDst: 0x8, storage: 0x80 } as const;
const STORAGE = USAGE.storage | USAGE.copySrc | USAGE.copyDst;
const STAGING = USAGE.mapRead | USAGE.copyDst;

/** Bytes of temporary buffers that wait to be used again. */
const MOST_SPARE = 64 * 2 ** 20;
/** Sizes are whole multiples of it. */
const GRAIN = 256;

/** A piece of the device's memory. */
export interface GpuBuffer {
  /** Its number; no other buffer has or had it. */
  readonly id: number;
  readonly buffer: GPUBuffer;
  /** Bytes it really has: at least what was asked for. */
  readonly size: number;
  /** The last batch whose commands use it; 0: none yet. */
  usedIn: number;
}

export interface GpuMemory {
  /** Bytes of all buffers right now, spare ones too. */
  readonly bytes: number;
  /** The most it has been. */
  readonly highWater: number;
  /** Buffers right now. */
  readonly buffers: number;
  /** Bytes that wait to be used again. */
  readonly spare: number;
}

/** What is held of one device. */
export class BufferPool {
  readonly #device: GPUDevice;
  readonly #maxBuffer: number;
  /** Temporary buffers by size. */
  readonly #spare = new Map<number, GpuBuffer[]>();
  readonly #doomed: GpuBuffer[] = [];
  readonly #all = new Set<GpuBuffer>();
  #nextId = 1;
  #spareBytes = 0;
  #bytes = 0;
  #high = 0;

  constructor(device: GPUDevice, maxBuffer: number) {
    this.#device = device;
    this.#maxBuffer = maxBuffer;
  }

  get memory(): GpuMemory {
    return { bytes: this.#bytes, highWater: this.#high, buffers: this.#all.size, spare: this.#spareBytes };
  }

  /**
   * A buffer of `bytes` of its own, zeros, of exactly that size (a multiple of 4).
   * @throws PalisadeError `gpu.limit`.
   */
  own(bytes: number): GpuBuffer {
    return this.#create(Math.max(4, Math.ceil(bytes / 4) * 4), STORAGE);
  }

  /**
   * One that was used before, but not in batch `busy`, or a new one; what is in it is not known.
   * @throws PalisadeError `gpu.limit`.
   */
  borrow(bytes: number, busy?: number): GpuBuffer {
    return this.#reuse(Math.max(1, Math.ceil(bytes / GRAIN)) * GRAIN, STORAGE, busy);
  }

  /** A buffer to read back through. @throws PalisadeError `gpu.limit`. */
  staging(bytes: number): GpuBuffer {
    return this.#create(Math.ceil(bytes / 4) * 4, STAGING);
  }

  /** Gives a borrowed buffer back. */
  giveBack(buffer: GpuBuffer): void {
    if (this.#spareBytes + buffer.size > MOST_SPARE) return this.destroy(buffer);
    const waiting = this.#spare.get(buffer.size) ?? [];
    waiting.push(buffer);
    this.#spare.set(buffer.size, waiting);
    this.#spareBytes += buffer.size;
  }

  /** Frees a buffer: `now`, or when no command waits to use it any more. It no longer counts. */
  destroy(buffer: GpuBuffer, now = false): void {
    if (!this.#all.delete(buffer)) return;
    this.#bytes -= buffer.size;
    if (now) buffer.buffer.destroy();
    else this.#doomed.push(buffer);
  }

  /** To be called when all commands were submitted. */
  sweep(): void {
    for (const { buffer } of this.#doomed) buffer.destroy();
    this.#doomed.length = 0;
  }

  /** Destroys what waits to be used again. */
  dropSpare(): void {
    for (const waiting of this.#spare.values()) for (const buffer of waiting) this.destroy(buffer);
    this.#spare.clear();
    this.#spareBytes = 0;
  }

  /** Destroys everything. */
  close(): void {
    this.dropSpare();
    for (const buffer of this.#all) this.destroy(buffer);
    this.sweep();
  }

  #reuse(size: number, usage: number, busy: number | undefined): GpuBuffer {
    const spare = this.#spare.get(size) ?? [], at = spare.findLastIndex(({ usedIn }) => usedIn !== busy);
    if (at < 0) return this.#create(size, usage);
    this.#spareBytes -= size;
    return spare.splice(at, 1)[0];
  }

  #create(size: number, usage: number): GpuBuffer {
    if (size > this.#maxBuffer) throw tooLarge("A buffer", size, this.#maxBuffer);
    const made = { id: this.#nextId++, buffer: this.#device.createBuffer({ size, usage }), size, usedIn: 0 };
    this.#all.add(made);
    this.#bytes += size;
    this.#high = Math.max(this.#high, this.#bytes);
    return made;
  }
}
