/**
 * NumPy's files of one array (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): a magic text, a
 * version, the header's length, a Python dictionary, the numbers. Only the dictionaries that NumPy itself writes are
 * taken, and the file must end with the last number.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { ByteSource } from "../../runtime/interface.ts";
import { byteLength } from "../file/safetensors_header.ts";
import type { FloatType } from "./floats.ts";
import { type DumpTensor, placedTensor } from "./tensors.ts";

/** What every file begins with. */
export const NPY_MAGIC: readonly number[] = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
/** Magic, version, and the longer form of the header's length. */
const PREFIX = 12;
/** NumPy's own limit. */
const MAX_HEADER = 10_000;
const MAX_DIMENSIONS = 32;
/** Types that are read. */
const FLOATS: Readonly<Record<string, FloatType>> = { f8: "F64", f4: "F32", f2: "F16" };
/** All numbers of NumPy but those whose size depends on the machine. */
const NUMBERS = /^([<>|=])(?:([fiu])([248])|([iub])(1)|(c)(8|16))$/;

const STRING = String.raw`'([^'"\\]{1,20})'`;
const SHAPE = String.raw`\(((?:(?:0|[1-9]\d{0,15}), ?)*(?:0|[1-9]\d{0,15})?)\)`;
/** Key order as NumPy writes it (sorted), with what blanks it puts there. */
const HEADER = new RegExp(`^\\{'descr': ${STRING}, 'fortran_order': (True|False), 'shape': ${SHAPE},? ?\\} *\\n?$`);

export interface NpyHeader {
  readonly shape: readonly number[];
  /** Ours, or NumPy's name of a type that is none of ours. */
  readonly type: string;
  readonly little: boolean;
  /** The first index runs fastest. */
  readonly fortran: boolean;
  /** Bytes in front of the numbers, and of the numbers. */
  readonly dataStart: number;
  readonly dataBytes: number;
}

/**
 * The header of an array of `size` bytes, of which `read` gives any.
 * @throws PalisadeError `npy.truncated`, `npy.header`, `npy.shape`, `npy.size`.
 */
export async function readNpyHeader(
  read: (offset: number, length: number) => Promise<Uint8Array>,
  size: number,
  file: string,
): Promise<NpyHeader> {
  if (size < PREFIX) throw refuse("truncated", file, `it has ${size} bytes, an array at least ${PREFIX}`);
  const prefix = await read(0, PREFIX), view = new DataView(prefix.buffer, prefix.byteOffset, PREFIX);
  if (NPY_MAGIC.some((byte, i) => prefix[i] !== byte)) throw refuse("header", file, "it isn't an array of NumPy");
  const major = prefix[6], minor = prefix[7];
  if (minor !== 0 || major < 1 || major > 3) {
    throw refuse("header", file, `its version is ${major}.${minor}, want 1.0 to 3.0`);
  }
  const from = major === 1 ? 10 : 12, length = major === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  if (length > MAX_HEADER) throw refuse("header", file, `a header of ${length} bytes: want at most ${MAX_HEADER}`);
  if (from + length > size) throw refuse("truncated", file, `a header of ${length} bytes in ${size}`);
  const found = parseHeader(new TextDecoder("latin1").decode(await read(from, length)), file);
  const dataStart = from + length;
  if (size - dataStart !== found.dataBytes) {
    const reason = `${size - dataStart} bytes of numbers for ${
      found.shape.join(" × ") || "one"
    }, which take ${found.dataBytes}`;
    throw refuse("size", file, reason);
  }
  return { ...found, dataStart };
}

function refuse(code: string, file: string, reason: string): PalisadeError {
  return inputError(`npy.${code}`, `${file}: ${reason}`, file);
}

function parseHeader(text: string, file: string): Omit<NpyHeader, "dataStart"> {
  const match = HEADER.exec(text);
  if (!match) {
    throw refuse("header", file, `the header is none that NumPy writes: ${JSON.stringify(text.slice(0, 80))}`);
  }
  const [, descr, fortran, dimensions] = match;
  const list = dimensions.trim(), items = list.split(",").map((each) => each.trim()).filter((each) => each !== "");
  // Python's (3) is a number, (3,) a tuple.
  if (items.length === 1 && !list.endsWith(",")) throw refuse("header", file, "the shape is no tuple");
  const shape = items.map(Number);
  const number = NUMBERS.exec(descr), size = Number(number?.[3] ?? number?.[5] ?? number?.[7]);
  // A number of several bytes has an order.
  if (!number || (number[1] === "|" && size > 1)) {
    throw refuse("header", file, `its type is ${descr}, no kind of number`);
  }
  const dataBytes = byteLength(shape, size);
  if (shape.length > MAX_DIMENSIONS || dataBytes === undefined) {
    throw refuse("shape", file, `${shape.join(" × ")} is too large`);
  }
  const type = FLOATS[descr.slice(1)] ?? descr, little = number[1] !== ">";
  return { shape, type, little, fortran: fortran === "True", dataBytes };
}

/** The array in a source of its own, by the name of the tensor. @throws as {@link readNpyHeader}. */
export async function npyTensor(source: ByteSource, name: string): Promise<DumpTensor> {
  const header = await readNpyHeader((offset, length) => source.read(offset, length), source.size, source.name);
  return inCOrder(placedTensor({ ...header, name, source, start: header.dataStart }), header);
}

/** The same tensor where its numbers lie in the other order: then it is read whole. */
export function inCOrder(tensor: DumpTensor, { fortran, shape }: Pick<NpyHeader, "fortran" | "shape">): DumpTensor {
  if (!fortran || shape.length < 2) return tensor;
  const size = shape.reduce((product, each) => product * each, 1);
  return {
    ...tensor,
    read: async (first, count, signal) =>
      turned(await tensor.read(0, size, signal), shape).subarray(first, first + count),
  };
}

/** From the first index running fastest to the last. */
function turned(values: Float32Array, shape: readonly number[]): Float32Array {
  const strides = shape.map((_, i) => shape.slice(0, i).reduce((product, each) => product * each, 1));
  const index = shape.map(() => 0), to = new Float32Array(values.length);
  let from = 0;
  for (let i = 0; i < values.length; i++) {
    to[i] = values[from];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      from += strides[axis];
      if (++index[axis] < shape[axis]) break;
      from -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return to;
}

/**
 * The bytes of an array of whole numbers, int32, version 1.0.
 * @throws RangeError when the shape doesn't fit.
 */
export function writeNpy(values: Int32Array, shape: readonly number[]): Uint8Array<ArrayBuffer> {
  if (byteLength(shape, 1) !== values.length) {
    throw new RangeError(`${values.length} numbers don't fit ${shape.join(" × ")}`);
  }
  const tuple = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '<i4', 'fortran_order': False, 'shape': (${tuple}), }`;
  // Numbers begin at a multiple of 64, and the header ends with a line break.
  const length = Math.ceil((10 + text.length + 1) / 64) * 64 - 10;
  const bytes = new Uint8Array(10 + length + 4 * values.length), view = new DataView(bytes.buffer);
  bytes.set(NPY_MAGIC);
  bytes[6] = 1;
  view.setUint16(8, length, true);
  bytes.set(new TextEncoder().encode(`${text.padEnd(length - 1)}\n`), 10);
  values.forEach((value, i) => view.setInt32(10 + length + 4 * i, value, true));
  return bytes;
}
