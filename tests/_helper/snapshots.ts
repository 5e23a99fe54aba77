/** What tests of snapshots share: contexts of tiny models, saved and restored in memory. */
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";
import { loadModel, type LoadOptions, type Model } from "../../model/model.ts";
import { type Context, type ContextOptions, openContext } from "../../model/session.ts";
import { type ByteSource, MemorySink } from "../../model/snapshot/bytes.ts";
import type { SaveOptions } from "../../model/snapshot/save.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { anyChunks } from "./chunks.ts";
import { randomGate } from "./gate.ts";
import { anyStatistics } from "./statistics.ts";

export const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. "
  .repeat(4);
export const QUESTION = "How many stakes?";
export const ASK = { maxTokens: 12, allowLoops: true } as const;

/** A tiny model with a gate and frequency chunks, ready to answer. */
export async function snapshotModel(name = "llama-plain", options: LoadOptions = {}): Promise<Model> {
  const path = fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
  const engines = { dense: "web", backend: "ts", precision: "float32", frame: "line", ...options } as const;
  const model = await loadModel(path, await currentRuntime(), engines);
  const chunks = () => Promise.resolve(anyChunks(model.config));
  const statistics = () => Promise.resolve(anyStatistics(model.config));
  return { ...model, chunks, statistics, gate: () => Promise.resolve(randomGate(model.config)) };
}

/** The bytes of a context's snapshot. */
export async function savedBytes(context: Context, options?: SaveOptions): Promise<Uint8Array<ArrayBuffer>> {
  const sink = new MemorySink();
  await context.save(sink, options);
  return sink.bytes();
}

/** The bytes of the snapshot of a text, read with these options. */
export async function snapshotOf(
  model: Model,
  options: ContextOptions = {},
  { text = TEXT, ...save }: SaveOptions & { readonly text?: string } = {},
): Promise<Uint8Array<ArrayBuffer>> {
  using context = await openContext(model, text, options);
  return await savedBytes(context, save);
}

/** Bytes as a source, read without a Blob, so that thousands are cheap. */
export function bytesSource(bytes: Uint8Array<ArrayBuffer>, name = "book.palisade"): ByteSource {
  return {
    name,
    size: bytes.length,
    read(offset, length) {
      if (offset < 0 || offset + length > bytes.length) throw new RangeError(`${offset}, ${length} of ${bytes.length}`);
      return Promise.resolve(bytes.slice(offset, offset + length));
    },
    close: () => Promise.resolve(),
  };
}

/** All rows and positions of a cache, to be compared bit by bit. */
export async function cacheContent({ cache }: Pick<Context, "cache">) {
  const content = [];
  for (let layer = 0; layer < cache.shape.layers; layer++) {
    for (let head = 0; head < cache.shape.kvHeads; head++) {
      const rows = await cache.rows(layer).copyRows(head);
      content.push({
        keys: rows.keys.slice(),
        values: rows.values.slice(),
        positions: cache.positions(layer, head),
        logical: cache.logicalPositions(layer, head),
      });
    }
  }
  return { content, position: cache.position, seen: cache.seen, type: cache.type };
}

/** Hexadecimal SHA-256 of all rows and positions of a cache. */
export async function contentHash(context: Pick<Context, "cache">): Promise<string> {
  const hash = createHash("sha256");
  for (const { keys, values, positions } of (await cacheContent(context)).content) {
    for (const { buffer, byteOffset, byteLength } of [keys, values, positions]) {
      hash.update(new Uint8Array(buffer, byteOffset, byteLength));
    }
  }
  return hash.digest("hex");
}
