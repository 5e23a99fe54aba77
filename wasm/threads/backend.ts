/**
 * The WebAssembly backend over several threads: each owns some KV heads of every layer, this one the first, or all heads
 * of layers with few rows.
 */
import type { Backend, BackendMemory } from "../../core/backend/interface.ts";
import { checkedRows } from "../../core/backend/checked_rows.ts";
import { scoreByGate } from "../../core/backend/gate.ts";
import { ThreadedRows } from "./rows.ts";
import type { ThreadPool } from "./pool.ts";
import { ROWS } from "./rows_service.ts";
import { createWasmBackend } from "../backend.ts";
import { THREAD_COST, type ThreadCost } from "./cost.ts";

/**
 * Backend over a pool, which it doesn't own. Results have the bits of one thread's, whatever the number of threads.
 *
 * Where another thread's memory can't grow, the failure comes with the next call that returns something about the same
 * rows; those rows then refuse everything but `free`, and the backend goes on.
 * @throws PalisadeError `wasm.start`. Its calls throw `threads.ended` when a thread has died.
 */
export async function createThreadedBackend(
  pool: ThreadPool,
  cost: ThreadCost = THREAD_COST,
): Promise<Backend<Float32Array>> {
  const own = await createWasmBackend(pool.kernels);
  const place = { backend: own, pool, cost };
  return {
    name: "wasm",
    detail: own.detail.replace("one thread", `${pool.size} threads`),
    memory: () => memory(own.memory(), pool),
    refits: true,
    reduces: true,
    packs: true,
    products: (a, b, depth) => own.products!(a, b, depth),
    solve: own.solve,
    boundedLeastSquares: own.boundedLeastSquares,
    tensors: own.tensors,
    createRows: (shape, reserve, type = "f32") =>
      checkedRows(shape, reserve, type, (checked) => ThreadedRows.create(place, checked, reserve, type)),
    // One list of all heads' scores, and little work: nothing to share out.
    select: (input) => own.select(input),
    gateScores: (gate, hidden, count) => scoreByGate(own, gate, hidden, count),
    [Symbol.dispose]: () => own[Symbol.dispose](),
  };
}

/** Sums over the threads; the high-water mark is the sum of theirs, so at least the true one. */
function memory(own: BackendMemory, pool: ThreadPool): BackendMemory {
  let { allocatedBytes, highWaterBytes, wasmBytes } = own;
  for (let rank = 1; rank < pool.size; rank++) {
    const other = pool.answerNow(rank, pool.ask(rank, ROWS.memory, {}));
    allocatedBytes += other.allocatedBytes;
    highWaterBytes += other.highWaterBytes;
    wasmBytes += other.wasmBytes;
  }
  return { allocatedBytes, highWaterBytes, wasmBytes };
}
