/** Products and solutions by a backend's kernels where it has them. */
import type { Backend } from "../../../core/backend/interface.ts";
import { type Algebra, PLAIN_ALGEBRA, type Products } from "../../../core/refit/linear.ts";

/** The backend's algebra, plain where it has none. */
export function algebraOf(backend: Pick<Backend, "products" | "solve" | "boundedLeastSquares">): Algebra {
  const { products, solve, boundedLeastSquares } = backend;
  return {
    products: products ? inFloat32(products) : PLAIN_ALGEBRA.products,
    solve: solve ?? PLAIN_ALGEBRA.solve,
    boundedLeastSquares: boundedLeastSquares ?? PLAIN_ALGEBRA.boundedLeastSquares,
  };
}

/** A backend's products for numbers in doubles. */
function inFloat32(products: NonNullable<Backend["products"]>): Products {
  return (a, b, depth) => {
    const left = new Float32Array(a), right = a === b ? left : new Float32Array(b);
    return new Float64Array(products(left, right, depth));
  };
}
