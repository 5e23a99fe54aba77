/** Small files that are read at once: gates, soft tokens, frequency chunks. */
import type { PalisadeError } from "../../core/errors.ts";
import type { ByteSource, Runtime } from "../../runtime/interface.ts";

/**
 * All bytes of a file, which is closed. `tooLarge` makes the error for one of more than `most` bytes.
 * @throws PalisadeError `file.*`, and what `tooLarge` makes.
 */
export async function readWhole(
  from: string | ByteSource,
  runtime: Pick<Runtime, "openFile">,
  most: number,
  tooLarge: (source: Pick<ByteSource, "name" | "size">) => PalisadeError,
): Promise<{ readonly bytes: Uint8Array<ArrayBuffer>; readonly name: string }> {
  const source = typeof from === "string" ? await runtime.openFile(from) : from;
  try {
    if (source.size > most) throw tooLarge(source);
    return { bytes: await source.read(0, source.size), name: source.name };
  } finally {
    await source.close();
  }
}
