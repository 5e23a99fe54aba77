import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import { currentRuntime, siblingModule } from "../../runtime/mod.ts";

const runtime = await currentRuntime();
const MODULE = siblingModule("../_helper/sandboxed", import.meta.url);

Deno.test("siblingModule() keeps the caller's extension", () => {
  assert.equal(siblingModule("./b", "file:///x/a.ts").href, "file:///x/b.ts");
  assert.equal(siblingModule("../c/b", "https://host/x/y/a.js?v=1").href, "https://host/x/c/b.js");
});

Deno.test("runSandboxed() returns the module's answer", async () => {
  const value = { text: "é", list: [1, 2] };
  const answer = await runtime.runSandboxed(MODULE, { job: "echo", value }, { timeoutMs: 10_000 });
  assert.deepEqual(answer, { echoed: value });
});

Deno.test("runSandboxed() rejects with what the module throws, and when there is no such module", async () => {
  await assert.rejects(
    runtime.runSandboxed(MODULE, { job: "throw" }, { timeoutMs: 10_000 }),
    /^Error: thrown on purpose$/,
  );
  const missing = siblingModule("../_helper/no_such_module", import.meta.url);
  await assert.rejects(runtime.runSandboxed(missing, {}, { timeoutMs: 10_000 }), /no_such_module/);
});

Deno.test("runSandboxed() ends a module that loops for ever", async () => {
  const isTimeout = (error: unknown) => error instanceof PalisadeError && error.code === "sandbox.timeout";
  await assert.rejects(runtime.runSandboxed(MODULE, { job: "loop" }, { timeoutMs: 300 }), isTimeout);
});

Deno.test("runSandboxed() does not keep the program from ending after a timeout", async () => {
  const door = JSON.stringify(new URL("../../runtime/mod.ts", import.meta.url).href);
  const script = `const runtime = await (await import(${door})).currentRuntime();
    const running = runtime.runSandboxed(new URL(${JSON.stringify(MODULE.href)}), { job: "loop" }, { timeoutMs: 200 });
    await running.catch((error) => console.log(error.code));`;
  const command = new Deno.Command(Deno.execPath(), { args: ["eval", script], signal: AbortSignal.timeout(30_000) });
  const { code, stdout } = await command.output();
  assert.deepEqual([code, new TextDecoder().decode(stdout)], [0, "sandbox.timeout\n"]);
});

Deno.test("runSandboxed() ends a module that takes too much memory", async () => {
  const isMemory = (error: unknown) => error instanceof PalisadeError && error.code === "sandbox.memory";
  await assert.rejects(
    runtime.runSandboxed(MODULE, { job: "hoard" }, { timeoutMs: 30_000, maxHeapMb: 32 }),
    isMemory,
  );
});

Deno.test("runSandboxed() ends when aborted, and does not begin when aborted before", async () => {
  const reason = new Error("enough");
  const abort = new AbortController();
  const running = runtime.runSandboxed(MODULE, { job: "loop" }, { timeoutMs: 30_000, signal: abort.signal });
  setTimeout(() => abort.abort(reason), 100);
  await assert.rejects(running, reason);
  await assert.rejects(
    runtime.runSandboxed(MODULE, { job: "loop" }, { timeoutMs: 30_000, signal: abort.signal }),
    reason,
  );
});
