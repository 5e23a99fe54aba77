/** Systems of equations in the kernels; see `core/refit/linear.ts` for what they solve. */
import type { Algebra } from "../core/refit/linear.ts";
import type { Kernels } from "./module.ts";

/** The kernels' refusal of a matrix that is not positive definite, or of numbers that are not finite. */
const NO_SOLUTION = -5;

/** `solve` of these kernels. */
export function solverOf(kernels: Kernels): Algebra["solve"] {
  return (a, n, ridge, b) => {
    if (n === 0) return new Float64Array(0);
    checkSquare(a, n);
    if (b.length % n !== 0) throw new RangeError(`Cannot solve ${n} equations for ${b.length} numbers`);
    return kernels.withBuffers((buffers) => {
      const [matrix, right] = [buffers.from(a), buffers.from(b)];
      const done = kernels.call.solve_symmetric(matrix, n, ridge, right, b.length / n);
      if (done === NO_SOLUTION) return undefined;
      kernels.check(done, "solve equations");
      return buffers.read(right, new Float64Array(b.length));
    });
  };
}

/** `boundedLeastSquares` of these kernels. */
export function descentOf(kernels: Kernels): Algebra["boundedLeastSquares"] {
  return (a, b, start, { least, steps }) => {
    const n = b.length;
    if (n === 0) return new Float64Array(0);
    checkSquare(a, n);
    if (start.length !== n) throw new RangeError(`Cannot begin with ${start.length} of ${n} numbers`);
    return kernels.withBuffers((buffers) => {
      const [matrix, right, x] = [a, b, start].map((numbers) => buffers.from(numbers)), work = buffers.zeros(16 * n);
      kernels.check(kernels.call.descend(matrix, n, right, x, work, least, steps), "descend");
      return buffers.read(x, new Float64Array(n));
    });
  };
}

function checkSquare(a: Float64Array, n: number): void {
  if (a.length !== n * n) throw new RangeError(`Cannot solve: ${a.length} numbers are no ${n} × ${n} matrix`);
}
