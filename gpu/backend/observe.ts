/** The window's attention, reduced as a policy asks; formulas in `core/measure/observe.ts`. */
import type { Needs, Observation, Reduction } from "../../core/policy/policy.ts";
import type { GpuTensor } from "../tensors.ts";
import type { Attention } from "./attention.ts";
import { checkSeen } from "./stages.ts";
import type { StoredHeads } from "./stored_heads.ts";

/** Planes of `columns.wgsl`. */
const PLANES = { mean: 0, pooledMean: 1, pooledMax: 2, variance: 3 } as const;
const ALL_PLANES = 6;
/** Places in the measures of `softmax.wgsl`. */
const MEASURES = { mass: 0, entropy: 1, logSumExp: 3 } as const;

/** All reads of it wait together. @throws PalisadeError `gpu.limit`. */
export async function observeWindow(
  attention: Attention,
  stored: StoredHeads,
  tensor: GpuTensor,
  window: number,
  needs: Needs,
): Promise<Partial<Observation>> {
  const { gpu, shape: { heads, kvHeads } } = stored.options, group = heads / kvHeads;
  const prefix = stored.longest - window, plane = kvHeads * prefix, kernel = needs.kernel ?? 5;
  checkSeen(gpu, "What is observed of a layer's rows", Math.max(4 * ALL_PLANES * plane, 4 * stored.longest));
  const planes = gpu.borrow(4 * ALL_PLANES * plane), wanted = needs.window ?? [];
  gpu.clear(planes);
  const columns = prefix > 0 && wanted.some((name) => name in PLANES);
  const measures = attention.runs({ tensor, count: window }, { prefix, kernel }, (run) => {
    if (columns) attention.addWindow(run, planes, { prefix, queries: window, kernel });
  });
  const column = async (name: keyof typeof PLANES): Promise<[Reduction, Float32Array]> => {
    const sums = new Float32Array(await gpu.read(planes, 4 * PLANES[name] * plane, 4 * plane));
    const by = { mean: group * window, pooledMean: group * window, pooledMax: 1, variance: group }[name];
    return [name, by === 1 ? sums : sums.map((sum) => sum / by)];
  };
  const byRow = gpu.read(measures, 0, 16 * heads * window);
  const row = async (name: keyof typeof MEASURES): Promise<[Reduction, Float32Array]> => {
    const all = new Float32Array(await byRow);
    return [name, Float32Array.from({ length: heads * window }, (_, i) => all[4 * i + MEASURES[name]])];
  };
  const reads = wanted.map((name) => name in PLANES ? column(name as keyof typeof PLANES) : row(name as "mass"));
  gpu.giveBack(measures);
  gpu.giveBack(planes);
  const [read] = await Promise.all([Promise.all(reads), byRow]);
  return Object.fromEntries(read);
}
