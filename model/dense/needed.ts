/** What a model's weights will take, known before anything of them is read. */
import { resourceError } from "../../core/errors.ts";
import type { GgufFile, GgufTensor } from "../file/gguf/reader.ts";
import type { DenseName } from "./interface.ts";
import type { WeightForm } from "./ort/weights.ts";

type Tensors = Pick<GgufFile, "tensors" | "name">;

/**
 * Bytes of weights that an engine holds at least; `form` is onnxruntime's. Our kernels and stages hold a matrix as it is in
 * the file where they multiply its type, else as float16 or float32. What engines need beyond their weights is not in it.
 */
export function neededBytes(file: Tensors, engine: DenseName, form: WeightForm): number {
  const matrices = [...file.tensors.values()].filter(({ shape }) => shape.length > 1);
  const sum = (some: readonly GgufTensor[], of: (tensor: GgufTensor) => number) =>
    some.reduce((all, tensor) => all + of(tensor), 0);
  const layers = matrices.filter(({ name }) => name.startsWith("blk."));
  const inFile = ({ byteLength }: GgufTensor) => byteLength, float32 = ({ elements }: GgufTensor) => 4 * elements;
  const ours = (tensor: GgufTensor) =>
    tensor.type.kernel ? inFile(tensor) : tensor.type.held ? 2 * tensor.elements : float32(tensor);
  switch (engine) {
    case "wasm":
    case "webgpu":
      return sum(matrices, ours);
    case "mixed":
      return sum(matrices, ours) + sum(layers, inFile);
    case "node":
    case "web":
      return sum(layers, (tensor) => form === "blocks" && tensor.type.blocks ? inFile(tensor) : float32(tensor));
    default:
      return engine satisfies never;
  }
}

/** @throws PalisadeError resources `memory.short` with the sum, where `limit` bytes can't hold the weights. */
export function checkNeeded({ name }: Tensors, needed: number, limit: number | undefined): void {
  if (limit === undefined || needed <= limit) return;
  const mb = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;
  const message =
    `Can't load ${name}: its weights take ${mb(needed)}, and this process can have ${mb(limit)} at most: ` +
    "take a smaller model, or one in fewer bits";
  throw resourceError("memory.short", message, name);
}
