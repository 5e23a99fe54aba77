/** Golden data: numbers of the reference implementations, committed under tests/data/golden. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseSafetensors, type Tensor } from "./safetensors.ts";

function path(name: string): string {
  return fileURLToPath(new URL(`../data/golden/${name}`, import.meta.url));
}

/** A golden JSON file. */
export async function readJson<T>(name: string): Promise<T> {
  return JSON.parse(await readFile(path(name), "utf8"));
}

/** The tensors of a golden safetensors file. */
export async function readSafetensors(name: string): Promise<Map<string, Tensor>> {
  return parseSafetensors(await readFile(path(name)));
}

/** A golden file's bytes. */
export async function readGolden(name: string): Promise<Uint8Array> {
  return await readFile(path(name));
}
