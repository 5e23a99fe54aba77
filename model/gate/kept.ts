/** Gates that are kept for readings to come. */
import { PalisadeError } from "../../core/errors.ts";

/** A gate that was not kept, and why. */
export interface NotKept {
  readonly stored: false;
  readonly why: string;
}

/** What `keep` returns; a disk that can't be written to costs the gate, not the reading. */
export async function unlessRefused<T>(keep: () => Promise<T>): Promise<T | NotKept> {
  try {
    return await keep();
  } catch (error) {
    if (error instanceof PalisadeError) return notKept(error.message);
    throw error;
  }
}

export function notKept(why: string): NotKept {
  return { stored: false, why };
}
