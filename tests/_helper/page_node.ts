/** What the suites use of `node:assert/strict` and `node:process`, for a page. */

function text(value: unknown): string {
  return JSON.stringify(value, (_, each) => ArrayBuffer.isView(each) ? Array.from(each as Uint8Array) : each);
}

function fail(message?: string): never {
  throw new Error(message ?? "an assertion failed");
}

function ok(value: unknown, message?: string): asserts value {
  if (!value) fail(message);
}

function equal(got: unknown, want: unknown, message?: string): void {
  if (!Object.is(got, want)) fail(`${message ?? "equal"}: ${text(got)}, want ${text(want)}`);
}

function deepEqual(got: unknown, want: unknown, message?: string): void {
  if (text(got) !== text(want)) fail(`${message ?? "deepEqual"}: ${text(got)}, want ${text(want)}`);
}

/** `wanted`: a class, or an expression for the message. */
async function rejects(work: Promise<unknown>, wanted: RegExp | (new (...all: never[]) => Error)): Promise<void> {
  const error = await work.then(() => fail("nothing was refused"), (reason: Error) => reason);
  const fits = wanted instanceof RegExp ? wanted.test(String(error)) : error instanceof wanted;
  ok(fits, `refused by ${error}`);
}

export const env: Record<string, string> = {};
export default Object.assign(ok, { ok, equal, deepEqual, rejects, fail, env });
