/** What a whole model keeps on a device, against this side: the same entries, but for those at the boundary. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import type { Backend } from "../../core/backend/interface.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import type { SelectionInput } from "../../core/select/select.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import { createGpuDense } from "../../model/dense/gpu/engine.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { gpuTest } from "../_helper/gpu.ts";
import { openTiny } from "../_helper/tiny_models.ts";

const MODEL = "qwen3-plain";
const PATH = fileURLToPath(new URL(`../data/models/${MODEL}.gguf`, import.meta.url));
const HERE = { backend: "ts", dense: "wasm", precision: "float32", frame: "line" } as const;
const TEXT = Array.from(
  { length: 9 },
  (_, i) => `Stake ${i * i + 7} was counted ${i} times before gate ${3 * i} shut. `,
).join("");

/** How far from the boundary, relative to it, an entry's score may lie whose fate differs. */
const BOUNDS = { float32: 1e-5, auto: 1e-2 } as const;

/** A selection, and what it kept. */
interface Selected {
  readonly input: SelectionInput;
  readonly kept: readonly Int32Array[];
}

/** The backend, whose selections are noted. */
function noting<T extends Tensor>(backend: Backend<T>, noted: Selected[]): Backend<T> {
  const own = Object.create(backend) as Backend<T>;
  return Object.assign(own, {
    select: async (input: SelectionInput) => {
      const kept = await backend.select(input);
      noted.push({ input, kept });
      return kept;
    },
  });
}

async function selections(model: Model, policy: string): Promise<Selected[]> {
  const noted: Selected[] = [], { backend } = model;
  using _ = await openContext({ ...model, backend: noting(backend, noted) }, TEXT, { policy, keep: "30%" });
  return noted;
}

/** The lowest score that this side keeps of a selection; what is kept whatever its score is not looked at. */
function boundaryOf({ input: { segments }, kept }: Selected): number {
  const free = segments.flatMap(({ scores, protectedEntries }, i) =>
    Array.from(kept[i]).filter((row) => !protectedEntries?.[row]).map((row) => scores[row])
  );
  return free.reduce((least, each) => Math.min(least, each), Infinity);
}

/** Of entries whose fate differs there: how far this side's scores are from the boundary, relative to it. */
function distances(here: Selected, there: Selected): number[] {
  const boundary = boundaryOf(here);
  return here.input.segments.flatMap(({ scores }, i) => {
    const [mine, theirs] = [here, there].map(({ kept }) => new Set(kept[i]));
    return Array.from(scores.keys()).filter((row) => mine.has(row) !== theirs.has(row))
      .map((row) => Math.abs(scores[row] - boundary) / boundary);
  });
}

/** Compares what the policies keep on the device with what they keep here. */
async function sameKept(gpu: GpuDevice, precision: keyof typeof BOUNDS): Promise<void> {
  await using here = await loadModel(PATH, await currentRuntime(), HERE);
  await using open = await openTiny(MODEL);
  using backend = createGpuBackend(gpu);
  await using dense = await createGpuDense(open.file, open.config, gpu, backend.tensors, { precision });
  for (const policy of ["defensive", "snapkv"]) {
    const [ours, theirs] = [await selections(here, policy), await selections({ ...here, dense, backend }, policy)];
    assert.ok(ours.length >= open.config.layers && theirs.length === ours.length);
    const entries = ours.flatMap(({ input }) => input.segments).reduce((sum, { scores }) => sum + scores.length, 0);
    const others = ours.flatMap((each, i) => distances(each, theirs[i]));
    const most = others.reduce((a, b) => Math.max(a, b), 0);
    console.log(`${policy}, ${precision}: ${others.length} of ${entries} differ, ${most.toExponential(1)} off at most`);
    assert.ok(most <= BOUNDS[precision], `${policy}: an entry ${most} from the boundary has another fate`);
    assert.ok(others.length <= 0.05 * entries, `${others.length} of ${entries} entries have another fate`);
  }
}

gpuTest("a whole model keeps on the device what it keeps here, but for scores at the boundary", async (gpu) => {
  await sameKept(gpu, "float32");
}, { without: ["f16"] });

gpuTest("with 16-bit products only entries near the boundary have another fate", async (gpu) => {
  assert.ok(gpu.info.features.f16, "the device has no f16");
  await sameKept(gpu, "auto");
});
