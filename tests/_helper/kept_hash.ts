/** Promise 4 in two numbers: a hash of everything the tiny golden models keep, by `core` and by a backend. */
import type { Backend } from "../../core/backend/interface.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { evictDump } from "../../core/dump/evict.ts";
import { policies } from "../../core/policy/registry.ts";
import { parseSafetensors } from "./safetensors.ts";
import { evictThrough, TINY_LENGTHS, TINY_SHAPE, tinyLayers } from "./tiny.ts";

export interface KeptHashes {
  /** Kept sets and score bits by `core` alone, SHA-256 in hex. */
  readonly core: string;
  /** The same through the backend. */
  readonly backend: string;
}

const RATIOS = [0.5, 0.8, 0.9];

/**
 * `read` gives the bytes of a golden file by name. Uses no runtime names, so it runs in a browser as well.
 */
export async function keptHashes(
  read: (name: string) => Promise<Uint8Array>,
  backend: Backend<Float32Array> = createReferenceBackend(),
): Promise<KeptHashes> {
  const texts = policies.flatMap(({ name, reference }) => reference ? [name, `${name}@reference`] : [name]);
  const byCore: Uint8Array[] = [], byBackend: Uint8Array[] = [];
  for (const length of TINY_LENGTHS) {
    const layers = tinyLayers(parseSafetensors(await read(`tiny-L${length}.safetensors`)), length);
    for (const text of texts) {
      for (const ratio of RATIOS) {
        const core = evictDump(text, { ratio }, TINY_SHAPE, layers);
        const through = await evictThrough(backend, text, { ratio }, TINY_SHAPE, layers);
        byCore.push(...[...core.kept.flat(), ...core.scores].map(bytesOf));
        byBackend.push(...[...through.kept.flat(), ...through.scores].map(bytesOf));
      }
    }
  }
  return { core: await sha256(byCore), backend: await sha256(byBackend) };
}

/** Little-endian bytes with the length in front, so that moving an entry to the next head changes the hash. */
function bytesOf(array: Int32Array | Float32Array): Uint8Array {
  const bytes = new Uint8Array(4 + array.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, array.length, true);
  const bits = new Uint32Array(array.buffer, array.byteOffset, array.length);
  bits.forEach((word, i) => view.setUint32(4 + 4 * i, word, true));
  return bytes;
}

async function sha256(parts: readonly Uint8Array[]): Promise<string> {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", all));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
