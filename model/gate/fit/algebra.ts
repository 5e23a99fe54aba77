/** Products and solutions by a backend's kernels where it has them. */
import type { Backend } from "../../../core/backend/interface.ts";
import { plainProducts, type Products, solve } from "../../../core/refit/linear.ts";
import type { Algebra } from "./towards.ts";

/** Products in float32, as `Backend.products` has them, of numbers in doubles. */
export function inFloat32(products: NonNullable<Backend["products"]>): Products {
  return (a, b, depth) => {
    const left = new Float32Array(a), right = a === b ? left : new Float32Array(b);
    return new Float64Array(products(left, right, depth));
  };
}

/** The backend's algebra, or the plain one. */
export function algebraOf(backend: Pick<Backend, "products">): Algebra {
  return { products: backend.products ? inFloat32(backend.products.bind(backend)) : plainProducts, solve };
}
