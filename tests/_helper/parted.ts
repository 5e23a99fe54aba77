/** A WebGPU backend whose heads span several buffers though they are small. */
import type { Backend, BackendMemory } from "../../core/backend/interface.ts";
import { ROW_PAGE } from "../../core/backend/interface.ts";
import { createGpuBackend, type GpuBackendOptions } from "../../gpu/backend/backend.ts";
import { rowWords } from "../../gpu/backend/stored_heads.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import { onThisSide } from "./this_side.ts";

/** Of rows of any shape and type a stage sees `pages` pages of one head, a power of two; all tensors must be freed. */
export function partedBackend(gpu: GpuDevice, pages: number, options: GpuBackendOptions = {}): Backend<Float32Array> {
  const backends = new Map<number, ReturnType<typeof createGpuBackend>>();
  const backendFor = (maxBinding: number) => {
    const known = backends.get(maxBinding) ?? createGpuBackend(gpu, { scratch: 2 ** 16, ...options, maxBinding });
    backends.set(maxBinding, known);
    return known;
  };
  const first = backendFor(gpu.info.maxBinding);
  const sum = (name: keyof BackendMemory) => [...backends.values()].reduce((all, each) => all + each.memory()[name], 0);
  const inner: Backend = {
    ...first,
    memory: () => ({
      allocatedBytes: sum("allocatedBytes"),
      highWaterBytes: sum("highWaterBytes"),
      wasmBytes: sum("wasmBytes"),
    }),
    createRows: (shape, reserve, type = "f32") => {
      // A shape that makes no sense is refused all the same.
      const bytes = 4 * ROW_PAGE * pages * rowWords(shape.headDim, type === "f16" || type === "int8" ? type : "f32");
      return backendFor(bytes > 0 ? bytes : gpu.info.maxBinding).createRows(shape, reserve, type);
    },
    [Symbol.dispose]: () => {
      for (const each of backends.values()) each[Symbol.dispose]();
    },
  };
  return onThisSide(inner, () => [...backends.values()].reduce((all, { tensors }) => all + tensors.alive, 0));
}
