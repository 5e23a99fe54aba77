import assert from "node:assert/strict";
import { currentRuntime } from "../../runtime/mod.ts";

const runtime = await currentRuntime();
const ECHO = new URL("../_helper/echo_thread.ts", import.meta.url);

Deno.test("startThread() carries data and messages both ways, in order", async () => {
  const got: unknown[] = [];
  let enough = () => {};
  const three = new Promise<void>((resolve) => enough = resolve);
  const thread = runtime.startThread(ECHO, { greeting: "hello" }, (message) => {
    if (got.push(message) === 3) enough();
  });
  thread.post("early");
  thread.post(new Float32Array([1, 2]));
  await three;
  assert.deepEqual(got, ["hello", { echo: "early" }, { echo: new Float32Array([1, 2]) }]);
  await thread.terminate();
  assert.match((await thread.ended).message, /ended with status/);
});

Deno.test("startThread() says why a thread ended by itself", async () => {
  const thread = runtime.startThread(ECHO, { greeting: "hello" }, () => {});
  thread.post("throw");
  assert.match((await thread.ended).message, /as asked/);
  await thread.terminate();
  const missing = runtime.startThread(new URL("../_helper/no_such_thread.ts", import.meta.url), {}, () => {});
  assert.match((await missing.ended).message, /no_such_thread/);
  await missing.terminate();
});
