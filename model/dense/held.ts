/** What our own kernels and stages hold of types that they don't multiply as they stand in the file. */
import { toHalf } from "../../core/backend/halves.ts";
import { inputError } from "../../core/errors.ts";
import { type TensorType, typeNamed } from "../file/tensor_types.ts";

/** From here on a number would be rounded to float16's infinity. */
const MOST_HALF = 65520;

/** What a type of the file is held as: itself where it is multiplied; `exact`: no weight may be rounded. */
export function heldAs(type: TensorType, exact: boolean): TensorType {
  return type.kernel ? type : typeNamed(exact ? "F32" : type.held ?? "F32");
}

/** The nearest float16 of each weight. @throws PalisadeError `gguf.value` for one that is beyond them. */
export function halvesOf(floats: Float32Array, name: string): Uint8Array<ArrayBuffer> {
  const odd = floats.find((x) => !(Math.abs(x) < MOST_HALF));
  if (odd !== undefined) {
    const message = `${name} holds ${odd}, and its type is held as float16, which ends below ${MOST_HALF}`;
    throw inputError("gguf.value", message, `tensor[${JSON.stringify(name)}]`);
  }
  const halves = Uint16Array.from(floats, toHalf);
  return new Uint8Array(halves.buffer);
}
