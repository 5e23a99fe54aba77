/**
 * What a task is: a generator of samples, the same for the same seed, at any length.
 *
 * A *prompt* is what the model gets: the context, which is compressed without the question, then the question and the
 * text the answer is made to begin with. *Length* counts the tokens of everything: chat frame, context, question,
 * answer prefix and the room for the answer, as RULER counts it (Hsieh et al. 2024, arXiv 2404.06654).
 */
import type { MetricName } from "./metrics.ts";
import type { Haystack } from "./haystack.ts";

export interface Prompt {
  readonly context: string;
  readonly question: string;
  readonly answerPrefix: string;
}

export interface Sample extends Prompt {
  /** What a right answer holds. */
  readonly answers: readonly string[];
  readonly metric: MetricName;
  /** Most tokens of an answer. */
  readonly maxNewTokens: number;
  /** Where it stands, for samples that are somebody's own: `cases.jsonl:3`. */
  readonly where?: string;
}

export interface SampleRequest {
  /** Tokens the whole prompt may take, answer included; ignored by tasks with texts of their own. */
  readonly length: number;
  /** Seed of this one sample. */
  readonly seed: number;
  /** Number of the sample, from 0. */
  readonly index: number;
  readonly haystack: Haystack;
  /** Tokens of a prompt with its chat frame, answer not counted. */
  readonly promptTokens: (prompt: Prompt) => number;
  /** Tokens of a bare text. */
  readonly textTokens: (text: string) => number;
}

export interface Task {
  readonly name: string;
  /** False for tasks whose texts are as long as they are: they run once, whatever lengths are asked. */
  readonly sized: boolean;
  /** Hash of the file behind the task, for tasks that have one; part of every cell's id. */
  readonly source?: string;
  /** That file as it was named: two tasks may have one name. */
  readonly file?: string;
  /** Samples there are, for tasks that can run out. */
  readonly available?: number;
  /** @throws PalisadeError `length.too-small`, `haystack.*`. */
  generate(request: SampleRequest): Sample;
}
