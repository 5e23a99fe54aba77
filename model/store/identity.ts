/** The identity of a model: its bytes. */
import type { ByteSource, Runtime } from "../../runtime/interface.ts";
import { partPaths } from "../file/gguf/split.ts";
import { hashFile, type HashOptions, hashSource } from "./part.ts";

/**
 * SHA-256 of the model file at `path`, of a split one over all its parts in order; hexadecimal. About 0.1 s per 100 MB.
 * PalisadeErrors as `Runtime.openFile`; the signal's reason.
 */
export async function modelHash(path: string, runtime: Runtime, options: HashOptions = {}): Promise<string> {
  const hasher = runtime.sha256();
  for (const part of partPaths(path)) await hashFile(runtime, part, hasher, options);
  return hasher.digest();
}

/** The same of open sources, all parts in order, which stay open. In a browser about 3 s per 100 MB. */
export async function sourcesHash(
  sources: readonly ByteSource[],
  runtime: Pick<Runtime, "sha256">,
  options: HashOptions = {},
): Promise<string> {
  const hasher = runtime.sha256();
  for (const source of sources) await hashSource(source, hasher, options);
  return hasher.digest();
}
