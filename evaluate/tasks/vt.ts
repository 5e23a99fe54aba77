/**
 * Variable tracking: a chain of assignments in noise; which variables hold the value? One chain of four hops, one
 * worked example of at most 500 tokens in front, as NVIDIA/RULER scripts/synthetic.yaml and
 * scripts/data/synthetic/variable_tracking.py ("assgined" is RULER's own spelling, and part of its prompt).
 */
import { Draw } from "./draw.ts";
import { fitLength } from "./fit.ts";
import type { Prompt, Sample, SampleRequest, Task } from "./interface.ts";
import { NOISE } from "./niah.ts";

const MAX_NEW_TOKENS = 30;
const HOPS = 4;
/** Tokens of the worked example, its answer included. */
const EXAMPLE_TOKENS = 500;
const CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

export const vt: Task = { name: "vt", sized: true, generate };

interface Chain {
  readonly prompt: Prompt;
  readonly variables: readonly string[];
}

function generate(request: SampleRequest): Sample {
  const { seed, textTokens, promptTokens, length } = request;
  const example = fitLength(
    (n) => chain(new Draw(seed), n, { letters: 3, value: "12345" }),
    (each) => textTokens(exampleText(each)) + MAX_NEW_TOKENS,
    { length: Math.min(EXAMPLE_TOKENS, length), least: 2, task: "vt" },
  );
  const value = String(new Draw(seed + 1).integer(10_000, 99_998));
  const build = (n: number): Chain => {
    const made = chain(new Draw(seed + 2), n, { letters: 5, value });
    return { ...made, prompt: { ...made.prompt, context: `${exampleText(example)}\n\n${made.prompt.context}` } };
  };
  const { prompt, variables } = fitLength(build, (each) => promptTokens(each.prompt) + MAX_NEW_TOKENS, {
    length,
    least: 2,
    task: "vt",
  });
  return { ...prompt, answers: variables, metric: "contains-all", maxNewTokens: MAX_NEW_TOKENS };
}

function exampleText({ prompt: { context, question, answerPrefix }, variables }: Chain): string {
  return `${context}\n${question}${answerPrefix} ${variables.join(" ")}`;
}

/** `n` lines of noise with the assignments between them; with few lines, between their sentences. */
function chain(draw: Draw, n: number, { letters, value }: { letters: number; value: string }): Chain {
  const variables: string[] = [];
  while (variables.length <= HOPS) {
    const name = draw.letters(letters, CAPITALS);
    if (!variables.includes(name)) variables.push(name);
  }
  const assignments = variables.map((name, i) => `VAR ${name} = ${i === 0 ? value : `VAR ${variables[i - 1]} `}`);
  const lines = n > assignments.length
    ? new Array<string>(n).fill(NOISE)
    : new Array<string>(n).fill(NOISE).flatMap((noise) => noise.match(/[^.]+\./g)!.map((sentence) => sentence.trim()));
  const places = draw.sample(lines.map((_, i) => i), assignments.length).sort((a, b) => a - b);
  places.forEach((at, i) => lines.splice(at + i, 0, assignments[i]));
  const holders = `${variables.length} variables are assgined the value ${value}`;
  return {
    variables,
    prompt: {
      context: `Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n${
        lines.join("\n")
      }`,
      question: `Question: Find all variables that are assigned the value ${value} in the text above.`,
      answerPrefix:
        ` Answer: According to the chain(s) of variable assignment in the text above, ${holders}, they are: `,
    },
  };
}
