import { PalisadeError } from "../../core/errors.ts";

/** Code and place of the refusal that `work` ends with, `not refused` without one. @throws whatever else it ends with. */
export async function refusalOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    if (error instanceof PalisadeError) return `${error.code} ${error.where}`;
    throw error;
  }
  return "not refused";
}
