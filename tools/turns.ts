/** Several jobs at once whose output reads as if they had run one after another. */

/** One job's place in the output. */
export interface Turn {
  /** Prints at once when every job before has ended, and keeps the text until then. */
  write(text: string): void;
}

/**
 * Runs `jobs` in their order, at most `lanes` at a time. Resolves when all have ended, with their results in the order
 * of the jobs. The first that throws ends the whole with its error, once no other runs; none is started after it.
 */
export async function inTurns<Result>(
  jobs: readonly ((turn: Turn) => Promise<Result>)[],
  lanes: number,
  print: (text: string) => void,
): Promise<Result[]> {
  const held = jobs.map(() => "");
  const ended = jobs.map(() => false);
  const results: Result[] = [];
  const errors: unknown[] = [];
  let first = 0, next = 0;
  const flush = () => {
    for (;; first++) {
      const text = held[first];
      if (text) print(text);
      held[first] = "";
      if (!ended[first]) return;
    }
  };
  const lane = async () => {
    while (next < jobs.length && errors.length === 0) {
      const index = next++;
      const write = (text: string) => {
        held[index] += text;
        if (index === first) flush();
      };
      try {
        results[index] = await jobs[index]({ write });
      } catch (error) {
        errors.push(error);
      }
      ended[index] = true;
      if (index === first) flush();
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  if (errors.length > 0) throw errors[0];
  return results;
}
