/** The identity of a model file. */
import { hashFile } from "../model/store/part.ts";
import type { Runtime } from "../runtime/interface.ts";

/** SHA-256 of a file, hexadecimal. PalisadeErrors as `Runtime.openFile`. */
export async function hashOfFile(path: string, runtime: Runtime): Promise<string> {
  const hasher = runtime.host!.sha256();
  await hashFile(runtime, path, hasher);
  return hasher.digest();
}
