/** The model thread, busy for `slowMs` before each line: neither timers nor messages get through meanwhile. */
import serve, { type ThreadSetup } from "../../evaluate/queue/model_thread.ts";
import type { ThreadPort } from "../../runtime/interface.ts";

export default function slow(setup: ThreadSetup & { slowMs: number }, port: ThreadPort): Promise<void> {
  const cell = new Int32Array(new SharedArrayBuffer(4));
  return serve(setup, port, { beforeLine: () => void Atomics.wait(cell, 0, 0, setup.slowMs) });
}
