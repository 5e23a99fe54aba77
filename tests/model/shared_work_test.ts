/** Long work whose result many ask for. */
import assert from "node:assert/strict";
import { sharedWork } from "../../model/shared_work.ts";

/** Work that ends when it is told to, and how often it was begun. */
function slowWork() {
  let begun = 0;
  const ends: { done(value: number): void; fail(error: Error): void }[] = [];
  const ask = sharedWork(({ signal }: { signal?: AbortSignal }) => {
    begun++;
    return new Promise<number>((done, fail) => {
      ends.push({ done, fail });
      signal?.addEventListener("abort", () => fail(signal.reason));
    });
  });
  return { ask, ends, begun: () => begun };
}

Deno.test("sharedWork() does the work once for all who ask, and remembers what came of it", async () => {
  const { ask, ends, begun } = slowWork(), both = Promise.all([ask(), ask()]);
  ends[0].done(7);
  assert.deepEqual([await both, await ask(), begun()], [[7, 7], 7, 1]);
  const failing = slowWork(), first = failing.ask();
  failing.ends[0].fail(new Error("no such file"));
  await assert.rejects(first, /no such file/);
  await assert.rejects(failing.ask(), /no such file/);
  assert.equal(failing.begun(), 1);
});

Deno.test("sharedWork() lets go who aborts, and begins anew for those who still wait", async () => {
  const { ask, ends, begun } = slowWork(), [first, second] = [new AbortController(), new AbortController()];
  const one = ask({ signal: first.signal }), two = ask({ signal: second.signal }), three = ask();
  second.abort(new Error("two has enough"));
  await assert.rejects(two, /two has enough/);
  assert.equal(begun(), 1, "the others' work goes on");
  first.abort(new Error("one has enough"));
  await assert.rejects(one, /one has enough/);
  await assert.rejects(ask({ signal: first.signal }), /one has enough/);
  while (begun() < 2) await Promise.resolve();
  ends[1].done(5);
  assert.deepEqual([await three, await ask({ signal: new AbortController().signal }), begun()], [5, 5, 2]);
});
