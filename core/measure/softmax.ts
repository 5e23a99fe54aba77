import { largest } from "../select/protect.ts";
import { exp } from "./exp.ts";

/** exp(x − the largest) over their sum, in doubles. */
export function softmaxOf(values: Float64Array): Float64Array {
  const most = largest(values), powers = values.map((value) => exp(value - most));
  const sum = powers.reduce((all, power) => all + power, 0);
  return powers.map((power) => power / sum);
}
