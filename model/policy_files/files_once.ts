/** What a context is read with is what it is told to be of, whatever becomes of the files meanwhile. */
import type { Model } from "../model.ts";

/** The model, with every file that scores come from read once. Its gates are already. */
export function filesOnce(model: Model): Model {
  const learned = once(() => model.learned());
  return {
    ...model,
    chunks: once((file) => model.chunks(file)),
    statistics: once((file) => model.statistics(file)),
    softTokens: once((from) => model.softTokens(from)),
    learned: () => learned(undefined),
  };
}

/** The same promise for the same argument. */
function once<A, T>(read: (from: A) => Promise<T>): (from: A) => Promise<T> {
  const known = new Map<A, Promise<T>>();
  return (from) => {
    const made = known.get(from) ?? read(from);
    known.set(from, made);
    return made;
  };
}
