import type { ByteSource } from "./interface.ts";

/**
 * Reads exactly `target.length` bytes from `offset` into `target`.
 * @throws as {@link ByteSource.read}.
 */
export async function readInto(
  source: Pick<ByteSource, "read" | "readInto">,
  offset: number,
  target: Uint8Array<ArrayBuffer>,
): Promise<void> {
  if (source.readInto) return await source.readInto(offset, target);
  target.set(await source.read(offset, target.length));
}
