/** Whether questions fit behind a context, known before it is read. */
import { inputError, option, say } from "../../core/errors.ts";
import { DEFAULTS } from "../defaults.ts";
import type { Model } from "../model.ts";
import { contextIds, questionIds } from "../text/prompt.ts";
import type { Positions } from "./answer.ts";

export interface QuestionRoom {
  readonly answerPrefix?: string;
  /** Default `DEFAULTS.positions`. */
  readonly positions?: Positions;
  readonly beyondTrained?: boolean;
  /** The cache is capped, so that closing gaps keeps every position below the trained length. */
  readonly capped: boolean;
}

/**
 * Refuses a question that the model can't take behind `text`. With closed gaps only what is kept of the text counts,
 * which isn't known yet: then a question must fit alone. A text that doesn't fit by itself is the reading's to refuse.
 * @throws PalisadeError input `question.too-long`, naming the question by its number where there are several.
 */
export function checkQuestions(
  { frame, tokenizer, config }: Pick<Model, "frame" | "tokenizer" | "config">,
  text: string,
  questions: readonly string[],
  { answerPrefix, positions = DEFAULTS.positions, beyondTrained = false, capped }: QuestionRoom,
): void {
  if (beyondTrained || (capped && positions === "rerotate")) return;
  const { name, contextLength } = config;
  const before = positions === "rerotate" ? 0 : contextIds(frame, tokenizer, text).length;
  if (before >= contextLength) return;
  questions.forEach((question, i) => {
    const tokens = questionIds(frame, tokenizer, question, answerPrefix).length;
    if (before + tokens <= contextLength) return;
    const which = questions.length === 1 ? "The question" : `Question ${i + 1}`;
    const problem = `${which} doesn't fit: it has ${tokens} tokens behind ${before} of the context, but ${name} was ` +
      `trained on ${contextLength}`;
    const message = say`${problem}; shorten it, or pass ${option("beyondTrained")}`;
    throw inputError("question.too-long", message, option("question"));
  });
}
