/** What stores on servers refuse alike. */
import { inputError, option, type PalisadeError, resourceError } from "../../../core/errors.ts";
import type { ByteRange } from "../store.ts";

/** Where refusals about a store are. */
export const WHERE = option("snapshots");

/** Input `store.url`. */
export function badPlace(message: string): PalisadeError {
  return inputError("store.url", message, WHERE);
}

/** Resources `store.package`: a package that palisade doesn't bring is not there. */
export function missingPackage(what: string, spec: string, cause: unknown): PalisadeError {
  return resourceError(
    "store.package",
    `No snapshots ${what} without its client: install ${spec} beside palisade`,
    WHERE,
    cause,
  );
}

/**
 * Resources `store.unreachable` (no connection), `store.refused` (credentials, rights), `store.full`, `store.failed`
 * (whatever else the server says).
 */
export function storeFailure(kind: "unreachable" | "refused" | "full" | "failed", place: string, cause: Error) {
  const said = {
    unreachable: `Can't reach ${place}`,
    refused: `${place} refused`,
    full: `${place} has no room left`,
    failed: `${place} failed`,
  };
  return resourceError(`store.${kind}`, `${said[kind]}: ${cause.message || cause.name}`, WHERE, cause);
}

/** Refuses a range that can't be one, or does not lie in `size` bytes. @throws RangeError */
export function checkRange({ offset, length }: ByteRange, size: number): void {
  if (Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0) {
    if (offset + length <= size) return;
  }
  throw new RangeError(`Can't read ${length} bytes from ${offset}: there are ${size}`);
}

/** Content in pieces of exactly `size` bytes, but the last. The pieces are the taker's own. At least one comes. */
export async function* pieces(
  content: Uint8Array | AsyncIterable<Uint8Array>,
  size: number,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let piece = new Uint8Array(size), length = 0, any = false;
  for await (const part of content instanceof Uint8Array ? [content] : content) {
    for (let at = 0; at < part.length;) {
      const taken = Math.min(part.length - at, size - length);
      piece.set(part.subarray(at, at + taken), length);
      at += taken;
      length += taken;
      if (length === size) {
        yield piece;
        any = true;
        piece = new Uint8Array(size);
        length = 0;
      }
    }
  }
  if (length > 0 || !any) yield piece.slice(0, length);
}
