/** What a dump holds: named tensors of floats, read when asked for. */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { ByteSource } from "../../runtime/interface.ts";
import { byteLength } from "../file/safetensors_header.ts";
import { decodeFloats, FLOAT_BYTES, type FloatType, isFloatType } from "./floats.ts";

/** A named array of floats, read when asked for. */
export interface DumpTensor {
  readonly name: string;
  /** Outermost dimension first. */
  readonly shape: readonly number[];
  /** As the container calls it; only a {@link FloatType} can be read. */
  readonly type: string;
  /**
   * `count` numbers from number `first` on, in C order, as float32.
   * @throws PalisadeError `dump.type`, `file.*`, and what the container refuses.
   */
  read(first: number, count: number, signal?: AbortSignal): Promise<Float32Array>;
}

/** An open dump. Closing it closes its files. */
export interface DumpContainer {
  readonly name: string;
  readonly names: readonly string[];
  /** Of one of {@link names}. @throws PalisadeError where the container says only now what it is. */
  tensor(name: string): Promise<DumpTensor>;
  /** Closes its files. */
  close(): Promise<void>;
}

/** Bytes read at a time, a whole number of every type. */
const PIECE = 2 ** 20;

/** Numbers of a tensor. */
export function sizeOf(shape: readonly number[]): number {
  return byteLength(shape, 1)!;
}

/** Where a tensor lies in a source, not packed. */
export interface Placed {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: string;
  readonly source: Pick<ByteSource, "name" | "read">;
  /** Its first byte. */
  readonly start: number;
  readonly little?: boolean;
}

/** A tensor that lies open in a source. */
export function placedTensor({ name, shape, type, source, start, little = true }: Placed): DumpTensor {
  return {
    name,
    shape,
    type,
    async read(first, count, signal) {
      const float = floatTypeOf(name, type, source.name), each = FLOAT_BYTES[float];
      const values = new Float32Array(count), step = PIECE / each;
      for (let done = 0; done < count; done += step) {
        signal?.throwIfAborted();
        const bytes = await source.read(start + (first + done) * each, Math.min(step, count - done) * each);
        decodeFloats(float, bytes, values, done, little);
      }
      return values;
    },
  };
}

/** @throws PalisadeError `dump.type`. */
export function floatTypeOf(name: string, type: string, file: string): FloatType {
  if (isFloatType(type)) return type;
  const wanted = Object.keys(FLOAT_BYTES).join(", ");
  throw dumpError("type", `Can't read ${name} of ${file}: its type is ${type}; want one of ${wanted}`, name);
}

/** A refusal of a dump. */
export function dumpError(code: string, message: string, where: string): PalisadeError {
  return inputError(`dump.${code}`, message, where);
}
