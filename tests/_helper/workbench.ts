/** What tests of evaluate/ share: a tiny model ready to answer, and a short prose to hide needles in. */
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Haystack, openHaystack } from "../../evaluate/tasks/haystack.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { anyChunks } from "./chunks.ts";
import { randomGate } from "./gate.ts";

export const TINY_MODEL = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));

export async function tinyModel(backend: "ts" | "wasm" = "ts"): Promise<Model> {
  const loading = { dense: "web", backend, precision: "float32", frame: "line" } as const;
  const model = await loadModel(TINY_MODEL, await currentRuntime(), loading);
  const chunks = () => Promise.resolve(anyChunks(model.config));
  return { ...model, chunks, gate: () => Promise.resolve(randomGate(model.config)) };
}

/** A folder of its own for one test file. */
export function testFolder(name: string): Promise<string> {
  return mkdtemp(join(tmpdir(), `palisade-${name}-`));
}

/** Two hundred different sentences. */
export const PROSE = Array.from(
  { length: 200 },
  (_, i) =>
    `Stake number ${i} stands ${"far near deep high low".split(" ")[i % 5]} of the ${i * 7 % 31} old gates there.`,
).join(" ");

export async function proseFile(folder: string): Promise<string> {
  const path = join(folder, "prose.txt");
  await writeFile(path, PROSE);
  return path;
}

export async function tinyHaystack(folder: string): Promise<Haystack> {
  return await openHaystack(await currentRuntime(), await proseFile(folder));
}
