/**
 * What a calibration has done so far, in one file: which layers are fitted, and the hidden states before the next one.
 * Written beside its final name and renamed, so that a file that is there is whole.
 */
import type { Runtime } from "../../../runtime/interface.ts";
import { hostOf } from "../../../runtime/host.ts";
import { type OutputKind, writeWhole } from "../../../runtime/output.ts";
import type { HiddenStates } from "../../read/hidden_states.ts";
import type { LayerFit } from "./layer.ts";

/** Eight bytes: the length of the JSON head that follows; then the hidden states as float32, one after another. */
interface Head {
  readonly fingerprint: string;
  readonly layers: readonly LayerFit[];
  /** Floats of each hidden state. */
  readonly lengths: readonly number[];
}

/** Head larger than any model's fits: 128 layers × 16 heads × 16384 weights as decimal text. */
const MAX_HEAD = 2 ** 30;

/** What a state may take the place of. */
export const CALIBRATION_STATE: OutputKind = {
  name: "the state of a calibration",
  async problem(file) {
    return await readHead(file.size, (offset, length) => file.read(offset, length)) ? undefined : "it begins otherwise";
  },
};

/**
 * Restores the hidden states into `states` and returns the layers that are fitted; none when there is no file, or one
 * of another calibration (`fingerprint`) or cut short.
 */
export async function restore(
  path: string,
  runtime: Runtime,
  fingerprint: string,
  states: readonly HiddenStates[],
): Promise<LayerFit[]> {
  if ((await hostOf(runtime, "calibrate").info(path))?.kind !== "file") return [];
  const source = await runtime.openFile(path);
  try {
    const head = await readHead(source.size, (offset, length) => source.read(offset, length));
    if (head?.value.fingerprint !== fingerprint) return [];
    const { lengths, layers } = head.value;
    const total = lengths.reduce((sum, length) => sum + length, 0);
    if (lengths.join() !== states.map(({ length }) => length).join() || source.size !== head.end + 4 * total) return [];
    let at = head.end;
    const next = async (length: number) => {
      const numbers = new Float32Array((await source.read(at, 4 * length)).buffer);
      at += 4 * length;
      return numbers;
    };
    for (const state of states) await state.fill(next);
    return [...layers];
  } finally {
    await source.close();
  }
}

async function readHead(size: number, read: (offset: number, length: number) => Promise<Uint8Array<ArrayBuffer>>) {
  if (size < 8) return undefined;
  const length = Number(new DataView((await read(0, 8)).buffer).getBigUint64(0, true));
  if (length > MAX_HEAD || 8 + length > size) return undefined;
  try {
    const value: Head = JSON.parse(new TextDecoder().decode(await read(8, length)));
    const fine = typeof value?.fingerprint === "string" && Array.isArray(value.layers) && Array.isArray(value.lengths);
    return fine ? { value, end: 8 + length } : undefined;
  } catch {
    return undefined;
  }
}

/** Writes the state after a layer. */
export async function save(
  path: string,
  runtime: Runtime,
  head: { readonly fingerprint: string; readonly layers: readonly LayerFit[] },
  states: readonly HiddenStates[],
): Promise<void> {
  const text = new TextEncoder().encode(JSON.stringify({ ...head, lengths: states.map(({ length }) => length) }));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
  await writeWhole(runtime, path, parts([length, text], states));
}

async function* parts(head: readonly Uint8Array[], states: readonly HiddenStates[]): AsyncGenerator<Uint8Array> {
  yield* head;
  for (const state of states) {
    for await (const { buffer, byteOffset, byteLength } of state.read()) {
      yield new Uint8Array(buffer, byteOffset, byteLength);
    }
  }
}
