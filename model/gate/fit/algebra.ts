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

type Multiply = NonNullable<Backend["products"]>;

/** A backend's products for numbers in doubles, which pass through the same two arrays. */
function inFloat32(products: Multiply): Products {
  const toLeft = floats(), toRight = floats();
  return (a, b, depth) => {
    const left = toLeft(a);
    if (a === b) return gram(products, left, depth);
    return new Float64Array(products(left, toRight(b), depth));
  };
}

/** Copies doubles as floats, valid until the next call. */
function floats(): (doubles: Float64Array) => Float32Array {
  let room = new Float32Array(0);
  return (doubles) => {
    if (room.length < doubles.length) room = new Float32Array(doubles.length);
    room.set(doubles);
    return room.subarray(0, doubles.length);
  };
}

/** Rows of A·Aᵀ that are multiplied at a time. */
const ROWS = 128;

/** A·Aᵀ: each row with those from its block on, since the others are known by then. */
function gram(products: Multiply, a: Float32Array, depth: number): Float64Array {
  const n = a.length / depth, result = new Float64Array(n * n);
  for (let first = 0; first < n; first += ROWS) {
    const count = Math.min(ROWS, n - first), left = n - first;
    const part = products(a.subarray(first * depth, (first + count) * depth), a.subarray(first * depth), depth);
    for (let i = 0; i < count; i++) {
      const row = part.subarray(i * left, (i + 1) * left), at = first + i;
      result.set(row.subarray(i), at * n + at);
      for (let j = i + 1; j < left; j++) result[(first + j) * n + at] = row[j];
    }
  }
  return result;
}
