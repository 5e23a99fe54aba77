/** Dense engine on onnxruntime-node: native code, used where the optional package is installed. */
import type { Env } from "onnxruntime-web";
import { resourceError } from "../../../core/errors.ts";
import type { ModelConfig } from "../../config.ts";
import type { GgufFile } from "../../file/gguf/reader.ts";
import type { DenseEngine, DenseLayers } from "../interface.ts";
import {
  createSegmentEngine,
  createSegmentLayers,
  type DenseOptions,
  type Onnxruntime,
  type SegmentPlan,
} from "./engine.ts";
import type { WeightForm } from "./weights.ts";

/** Whether onnxruntime-node can be used here. */
export interface NodeProbe {
  readonly available: boolean;
  /** Why not, for people; empty when it is available. */
  readonly reason: string;
  /** Of onnxruntime-node; empty when it is not available. */
  readonly version: string;
}

/** Not a literal inside `import()`, or a bundler would ask for the package. */
const PACKAGE: string = "onnxruntime-node";

type NodeModule = Onnxruntime & { readonly env: Env };

/** Tries to load onnxruntime-node. Never rejects. `load` stands in for the import in tests. */
export async function probeNode(load: () => Promise<unknown> = importNode): Promise<NodeProbe> {
  try {
    const module = await loadNode(load);
    return { available: true, reason: "", version: module.env.versions.node ?? "" };
  } catch (error) {
    const reason = error instanceof Error ? error.message.split("\n")[0] : String(error);
    return { available: false, reason: `${PACKAGE} can't be loaded: ${reason}`, version: "" };
  }
}

/**
 * Makes the engine from a GGUF, with weights in float32 or in the file's blocks. Resources `dense.unavailable` when the
 * package can't be loaded; other errors as in `createSegmentEngine`.
 */
export async function createNodeEngine(
  file: GgufFile,
  config: ModelConfig,
  form: WeightForm,
  options: DenseOptions = {},
): Promise<DenseEngine> {
  return await createSegmentEngine(file, config, await nodePlan(form, options), options);
}

/** The layers alone; errors as above. */
export async function createNodeLayers(
  file: GgufFile,
  config: ModelConfig,
  form: WeightForm,
  options: DenseOptions = {},
): Promise<DenseLayers> {
  return await createSegmentLayers(file, config, await nodePlan(form, options), options);
}

async function nodePlan(form: WeightForm, options: DenseOptions): Promise<SegmentPlan> {
  const probe = await probeNode();
  if (!probe.available) throw resourceError("dense.unavailable", probe.reason, "node");
  return {
    name: "node",
    library: `${PACKAGE} ${probe.version}`,
    ort: await loadNode(importNode),
    session: {
      executionProviders: ["cpu"],
      intraOpNumThreads: options.threads ?? 1,
      interOpNumThreads: 1,
      // Every session would keep an arena and a spinning pool of its own.
      enableCpuMemArena: false,
      enableMemPattern: false,
      extra: { session: { intra_op: { allow_spinning: "0" } } },
      logSeverityLevel: 3,
    },
    form,
    style: "native",
  };
}

function importNode(): Promise<unknown> {
  return import(PACKAGE);
}

async function loadNode(load: () => Promise<unknown>): Promise<NodeModule> {
  const module = await load() as NodeModule & { readonly default?: NodeModule };
  return module.InferenceSession ? module : module.default!;
}
