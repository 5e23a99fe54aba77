/** Waits end when the word changes, soon or late, and when their time is up. */
import assert from "node:assert/strict";
import { currentRuntime } from "../../runtime/mod.ts";
import { Waiter } from "../../wasm/threads/wait.ts";

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
