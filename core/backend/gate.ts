/** Gate scores by the backend's product where it has one, else by core's own. */
import { gateScores, type LinearGate } from "../measure/gate_scores.ts";
import type { Backend } from "./interface.ts";
import type { Tensor } from "./tensor.ts";

/**
 * Scores of `gate`, `[count, heads]`, from `hidden`, `[count, width]`; see `gateScores`.
 * @throws RangeError when a length does not fit.
 */
export async function scoreByGate(
  backend: Pick<Backend, "gateScores" | "tensors">,
  gate: LinearGate,
  hidden: Tensor,
  count: number,
): Promise<Float32Array> {
  if (backend.gateScores) return await backend.gateScores(gate, hidden, count);
  return gateScores(gate, await backend.tensors.read(hidden), count);
}
