/** The dense engine both onnxruntimes share: it makes the sessions, feeds them, and types their failures. */
import type { InferenceSession, Tensor } from "onnxruntime-web";
import { PalisadeError, resourceError } from "../../../core/errors.ts";
import { breathe } from "../../../runtime/breathe.ts";
import { type DenseOperation, inputsOf } from "../../architecture.ts";
import type { ModelConfig } from "../../config.ts";
import type { GgufFile } from "../../file/gguf/reader.ts";
import { type Embedding, readEmbedding } from "../embedding.ts";
import type { DenseEngine, DenseLayers, HostDenseName } from "../interface.ts";
import { encodeModel, type Graph } from "./onnx.ts";
import { type LinearStyle, segmentGraph } from "./segments.ts";
import { describeWeights, type WeightForm, WeightReader } from "./weights.ts";

/** What both onnxruntime packages offer of the common interface. */
export interface Onnxruntime {
  readonly InferenceSession: {
    create(model: Uint8Array, options?: InferenceSession.SessionOptions): Promise<InferenceSession>;
  };
  readonly Tensor: new (type: "float32", data: Float32Array, dims: readonly number[]) => Tensor;
}

export interface DenseOptions {
  /** Threads inside one product, ≥ 1. Default 1. */
  readonly threads?: number;
  /** Called after each session is made. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops between sessions. */
  readonly signal?: AbortSignal;
}

/** How an engine is set up; `createSegmentEngine` decides nothing. */
export interface SegmentPlan {
  readonly name: HostDenseName;
  /** Package and version, for people. */
  readonly library: string;
  readonly ort: Onnxruntime;
  readonly session: InferenceSession.SessionOptions;
  readonly form: WeightForm;
  readonly style: LinearStyle;
}

/**
 * Makes the sessions one after another, the head first: it is the largest, and what its making frees is reused by the
 * layers. PalisadeErrors: `gguf.*` for tensors that don't fit, resources `dense.memory` when memory runs out and
 * `dense.failed` for any other failure of onnxruntime; `signal.reason` when stopped. Nothing is kept on failure.
 */
export async function createSegmentEngine(
  file: GgufFile,
  config: ModelConfig,
  plan: SegmentPlan,
  options: DenseOptions = {},
): Promise<DenseEngine> {
  const sessions = new Sessions(plan, 2 * config.layers + 1, options);
  try {
    const embedding = await readEmbedding(file, config);
    await addSegment(sessions, "logits", config.decoder.head, file, config, plan);
    await addLayers(sessions, file, config, plan);
    return new SegmentEngine(plan.name, detailOf(file, plan, options), config, sessions, embedding);
  } catch (error) {
    await sessions.release();
    throw error;
  }
}

/** The same without head and embeddings, which are not read. */
export async function createSegmentLayers(
  file: GgufFile,
  config: ModelConfig,
  plan: SegmentPlan,
  options: DenseOptions = {},
): Promise<DenseLayers> {
  const sessions = new Sessions(plan, 2 * config.layers, options);
  try {
    await addLayers(sessions, file, config, plan);
    return new SegmentLayers(plan.name, detailOf(file, plan, options), config, sessions);
  } catch (error) {
    await sessions.release();
    throw error;
  }
}

async function addLayers(sessions: Sessions, file: GgufFile, config: ModelConfig, plan: SegmentPlan) {
  for (let layer = 0; layer < config.layers; layer++) {
    const { project, finish } = config.decoder.layers[layer];
    await addSegment(sessions, `qkv.${layer}`, project, file, config, plan);
    await addSegment(sessions, `finish.${layer}`, finish, file, config, plan);
  }
}

async function addSegment(
  sessions: Sessions,
  name: string,
  operations: readonly DenseOperation[],
  file: GgufFile,
  config: ModelConfig,
  { form, style }: SegmentPlan,
) {
  await sessions.add(name, async () => {
    const read = await new WeightReader(file, form).operations(operations);
    return segmentGraph(name, read, inputsOf(config), config.normEpsilon, style);
  });
}

function detailOf(file: GgufFile, { library, form }: SegmentPlan, { threads = 1 }: DenseOptions): string {
  return `${library}, ${threads} thread${threads === 1 ? "" : "s"}, ${describeWeights(file, form)}`;
}

class SegmentLayers implements DenseLayers {
  readonly name: HostDenseName;
  readonly detail: string;
  readonly config: ModelConfig;
  readonly weightBytes: number;
  readonly #sessions: Sessions;

  constructor(name: HostDenseName, detail: string, config: ModelConfig, sessions: Sessions, otherBytes = 0) {
    this.name = name;
    this.detail = detail;
    this.config = config;
    this.weightBytes = otherBytes + sessions.weightBytes;
    this.#sessions = sessions;
  }

  qkv(layer: number, hidden: Float32Array, count: number): Promise<Float32Array> {
    return this.#sessions.run(`qkv.${layer}`, { hidden }, count);
  }

  finish(layer: number, hidden: Float32Array, attention: Float32Array, count: number): Promise<Float32Array> {
    return this.#sessions.run(`finish.${layer}`, { hidden, attention }, count);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#sessions.release();
  }
}

class SegmentEngine extends SegmentLayers implements DenseEngine {
  readonly #embedding: Embedding;
  readonly #sessions: Sessions;

  constructor(name: HostDenseName, detail: string, config: ModelConfig, sessions: Sessions, embedding: Embedding) {
    super(name, detail, config, sessions, embedding.byteLength);
    this.#embedding = embedding;
    this.#sessions = sessions;
  }

  embed(ids: ArrayLike<number>): Float32Array {
    return this.#embedding.lookup(ids);
  }

  logits(hidden: Float32Array, count: number): Promise<Float32Array> {
    return this.#sessions.run("logits", { hidden }, count);
  }
}

interface Segment {
  readonly session: InferenceSession;
  readonly graph: Pick<Graph, "inputs" | "outputs">;
}

/** Sessions by name. */
class Sessions {
  weightBytes = 0;
  readonly #plan: SegmentPlan;
  readonly #total: number;
  readonly #options: DenseOptions;
  readonly #segments = new Map<string, Segment>();
  #released = false;

  constructor(plan: SegmentPlan, total: number, options: DenseOptions) {
    this.#plan = plan;
    this.#total = total;
    this.#options = options;
  }

  /** Makes a session. Its weights are read here, so that no two segments' weights are alive at once. */
  async add(name: string, makeGraph: () => Promise<Graph>): Promise<void> {
    await breathe(this.#options.signal);
    try {
      const graph = await makeGraph();
      const { bytes, external } = encodeModel(graph);
      const session = await oneAtATime(() =>
        this.#plan.ort.InferenceSession.create(bytes, { ...this.#plan.session, externalData: external })
      );
      this.#segments.set(name, { session, graph: { inputs: graph.inputs, outputs: graph.outputs } });
      this.weightBytes += graph.initializers.reduce((sum, tensor) => sum + tensor.data.byteLength, 0);
    } catch (error) {
      throw denseError(error, this.#plan.name, `making the session ${name}`);
    }
    this.#options.onProgress?.(this.#segments.size, this.#total);
  }

  /** Runs a segment of one output over `count` rows; the result belongs to the caller. */
  async run(name: string, inputs: Record<string, Float32Array>, count: number): Promise<Float32Array> {
    if (this.#released) throw new Error(`The dense engine is disposed; ${name} can't run`);
    const segment = this.#segments.get(name);
    if (!segment) throw new RangeError(`There is no segment ${name}`);
    const { session, graph } = segment;
    if (!Number.isInteger(count) || count < 1) throw new RangeError(`${name} wants at least one row, not ${count}`);
    const feeds: Record<string, Tensor> = {};
    for (const { name: input, width } of graph.inputs) {
      const data = inputs[input];
      if (data.length !== count * width) {
        throw new RangeError(`${name} wants ${input} as [${count}, ${width}], not ${data.length} numbers`);
      }
      feeds[input] = new this.#plan.ort.Tensor("float32", data, [count, width]);
    }
    try {
      const results = await session.run(feeds);
      return results[graph.outputs[0].name].data as Float32Array;
    } catch (error) {
      throw denseError(error, this.#plan.name, `running ${name} over ${count} rows`);
    }
  }

  async release(): Promise<void> {
    this.#released = true;
    const segments = [...this.#segments.values()];
    this.#segments.clear();
    for (const { session } of segments) await session.release();
  }
}

/** Words of the failures that mean there was not enough memory, in onnxruntime, Emscripten and the JS engines. */
const OUT_OF_MEMORY = /bad_?alloc|out of memory|\bOOM\b|failed to allocate|allocation (failed|size)|array length/i;

function denseError(error: unknown, engine: HostDenseName, action: string): unknown {
  if (error instanceof PalisadeError) return error;
  const message = error instanceof Error ? error.message : String(error);
  if (OUT_OF_MEMORY.test(message)) {
    const advice = 'a smaller model, or precision "quantised", needs less';
    return resourceError("dense.memory", `Not enough memory while ${action} (${message}); ${advice}`, engine, error);
  }
  return resourceError("dense.failed", `onnxruntime failed while ${action}: ${message}`, engine, error);
}

let lastCreation: Promise<unknown> = Promise.resolve();

/**
 * onnxruntime-web keeps the external data of sessions in the making in one table per process, by name: two models
 * loaded at once would take each other's weights.
 */
function oneAtATime<T>(create: () => Promise<T>): Promise<T> {
  const creation = lastCreation.then(create);
  lastCreation = creation.catch(() => {});
  return creation;
}
