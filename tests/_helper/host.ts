/** The numbers behind the tensors of a device on this side, where tests look at them. */
import assert from "node:assert/strict";
import type { Tensor } from "../../core/backend/tensor.ts";
import type { Dense } from "../../model/dense/dense.ts";
import { HostDense } from "../../model/dense/host.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";

/** The engine of a dense part on this side. */
export function engineOf(dense: Dense | DenseEngine): DenseEngine {
  if ("qkv" in dense) return dense;
  assert.ok(dense instanceof HostDense, "the dense part is elsewhere");
  return dense.engine;
}

/** A tensor that is on this side. */
export function numbersOf(tensor: Tensor): Float32Array {
  assert.ok(tensor instanceof Float32Array, "the tensor is elsewhere");
  return tensor;
}
