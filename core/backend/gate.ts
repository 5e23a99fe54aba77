/** Gate scores by the backend's product where it has one, else by core's own. */
import { gateScores, type LinearGate } from "../measure/gate_scores.ts";
import type { Backend } from "./interface.ts";

/**
 * Scores of `gate`, `[count, heads]`, from `hidden`, `[count, width]`; see `gateScores`.
 * @throws RangeError when a length does not fit.
 */
export async function scoreByGate(
  backend: Pick<Backend, "gateScores">,
  gate: LinearGate,
  hidden: Float32Array,
  count: number,
): Promise<Float32Array> {
  return await backend.gateScores?.(gate, hidden, count) ?? gateScores(gate, hidden, count);
}
