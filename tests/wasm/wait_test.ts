/** Waits end when the word changes, soon or late, and when their time is up. */
import assert from "node:assert/strict";
import { currentRuntime } from "../../runtime/mod.ts";
import { Patience, Waiter } from "../../wasm/threads/wait.ts";

const { startThread } = await currentRuntime();

Deno.test("Waiter.changed() is true at once for another value, and false when nothing changes in time", () => {
  const words = new Int32Array(new SharedArrayBuffer(8)), waiter = new Waiter(words, 1);
  assert.equal(waiter.changed(7), true);
  // More often than it takes to give up being awake, and not for ever after.
  for (let i = 0; i < 20; i++) assert.equal(waiter.changed(0, 1), false);
  words[1] = 1;
  assert.equal(waiter.changed(0), true);
});

Deno.test("Waiter.changed() hears of a change while it is awake and while it sleeps", async () => {
  const memory = new SharedArrayBuffer(8), words = new Int32Array(memory), waiter = new Waiter(words, 0);
  let ready: (message: unknown) => void;
  const started = new Promise((resolve) => ready = resolve);
  const module = new URL("../_helper/changing_thread.ts", import.meta.url);
  const thread = startThread(module, { words: memory }, (message) => ready(message));
  assert.equal(await started, "ready");
  for (const [value, ms] of [0, 30, 0, 0, 5].entries()) {
    thread.post(ms);
    assert.equal(waiter.changed(value), true);
    assert.equal(words[0], value + 1);
  }
  await thread.terminate();
});

Deno.test("Patience follows waits that are short, and those that are heard awake leave it as it is", () => {
  const patience = new Patience();
  assert.equal(patience.awake, 0.05);
  patience.slept(0.1);
  assert.equal(patience.awake, 0.2);
  patience.heard(0.15);
  patience.slept(0.4);
  assert.equal(patience.awake, 0.5, "no longer than that");
  for (let i = 0; i < 100; i++) patience.heard(0.01);
  assert.equal(patience.awake, 0.5);
});

Deno.test("Patience is over after long waits in a row, not after one", () => {
  const patience = new Patience();
  patience.slept(0.1);
  for (let i = 0; i < 3; i++) patience.slept(50);
  assert.equal(patience.awake, 0.2);
  for (let i = 0; i < 20; i++) patience.slept(50);
  assert.equal(patience.awake, 0.002);
  patience.heard(0);
  assert.equal(patience.awake, 0.05);
});

/** Waits until being awake for longer than a wake costs is tried, where each ends 0.1 ms after it fell asleep. */
function restOf(patience: Patience): number {
  let waits = 0;
  for (; patience.awake <= 0.05; waits++) patience.slept(patience.awake + 0.1);
  while (patience.awake > 0.05) patience.slept(patience.awake + 0.1);
  return waits;
}

Deno.test("Patience gives up where waits end asleep however long they were awake, for longer each time", () => {
  const patience = new Patience(), rests = Array.from({ length: 10 }, () => restOf(patience));
  assert.equal(rests[0], 1);
  for (let i = 2; i < rests.length; i++) assert.ok(rests[i] >= rests[i - 1], rests.join());
  assert.ok(rests[9] >= 1000 && rests[9] < 1100, rests.join());
});
