/** A new array of `Type` with the elements of all `parts`, one after another. */
export function concatenate<A extends Float32Array | Int32Array | Uint8Array>(
  parts: readonly ArrayLike<number>[],
  Type: new (length: number) => A,
): A {
  const all = new Type(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
