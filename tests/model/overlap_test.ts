/** Evictions beside the reading: how many, in which order, and that none is left behind. */
import assert from "node:assert/strict";
import { Evictions, together, waitingLayers } from "../../model/read/overlap.ts";

Deno.test("waitingLayers() grows as texts get shorter, and is none where answers come at once", () => {
  const device = { waitingRows: 32768 };
  assert.deepEqual([1000, 4096, 16384, 32768, 32769].map((tokens) => waitingLayers(device, tokens)), [32, 8, 2, 1, 0]);
  assert.equal(waitingLayers({}, 10), 0);
});

/** Evictions that end when told to, and what happened. */
function controlled(most: number) {
  const evictions = new Evictions(most), events: string[] = [], ends: ((error?: Error) => void)[] = [];
  const add = (name: string) =>
    evictions.add(async (before) => {
      events.push(`asked ${name}`);
      const answer = new Promise<void>((resolve, reject) => ends.push((error) => error ? reject(error) : resolve()));
      await together(answer, before);
      events.push(`decided ${name}`);
    });
  const read = async (name: string) => {
    await evictions.beside(Promise.resolve());
    events.push(`read ${name}`);
  };
  return { evictions, events, ends, add, read };
}

Deno.test("Evictions decides in order whatever comes first, and lets so many wait", async () => {
  const { evictions, events, ends, add, read } = controlled(2);
  await read("0");
  await add("0");
  await read("1");
  await add("1");
  const third = read("2");
  ends[1]();
  ends[0]();
  await third;
  await add("2");
  ends[2]();
  await evictions.end();
  assert.deepEqual(events.filter((each) => each.startsWith("decided")), ["decided 0", "decided 1", "decided 2"]);
  assert.ok(
    events.indexOf("asked 1") < events.indexOf("decided 0"),
    "the second is asked before the first is answered",
  );
  assert.ok(events.indexOf("decided 0") < events.indexOf("read 2"), "no more than two wait");
});

Deno.test("Evictions waits at once where none may wait", async () => {
  const { events, ends, add } = controlled(0), added = add("0");
  ends[0]();
  await added;
  assert.deepEqual(events, ["asked 0", "decided 0"]);
});

Deno.test("a failure is told when all have ended, the earliest first", async () => {
  const { evictions, events, ends, add, read } = controlled(3);
  await add("0");
  await add("1");
  ends[1]();
  ends[0](new Error("lost"));
  await assert.rejects(evictions.end(), /lost/);
  assert.deepEqual(events.filter((each) => each.startsWith("decided")), [], "the second waits for the first");
  const again = controlled(1);
  await again.add("0");
  again.ends[0](new Error("evicting"));
  await assert.rejects(again.evictions.beside(Promise.reject(new Error("reading"))), /evicting/);
  const reading = controlled(2);
  await reading.add("0");
  const failed = reading.evictions.beside(Promise.reject(new Error("reading")));
  reading.ends[0]();
  await assert.rejects(failed, /reading/);
  assert.deepEqual(reading.events, ["asked 0", "decided 0"], "nothing is under way any more");
  await read("after");
});
