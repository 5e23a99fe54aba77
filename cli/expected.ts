/** What a text to be read will take, for the model that is loaded for it. */
import type { Keep } from "../core/select/budget.ts";
import type { LoadOptions } from "../model/model.ts";
import { contextIds, questionIds } from "../model/text/prompt.ts";
import type { ParsedReading, ReadingOptions } from "./reading.ts";

/** What is asked of the text, if anything. */
export interface Asked {
  readonly questions?: readonly string[];
  readonly answerTokens?: number;
}

type HowMuch = Partial<Pick<ReadingOptions, "cacheType" | "risk" | "riskWorst">> & Pick<ParsedReading, "keep">;

/**
 * Of a text, and of what is asked of it: then also the positions there will be, since a policy may make the model repeat
 * all of the text behind itself. A text that others ask later is read as for all positions.
 */
export function expectedOf(
  text: string,
  { cacheType, risk, riskWorst, keep }: HowMuch,
  asking?: Asked,
): NonNullable<LoadOptions["expected"]> {
  return ({ frame, tokenizer }) => {
    const context = contextIds(frame, tokenizer, text).length;
    const { questions = [], answerTokens = 0 } = asking ?? {};
    const asked = Math.max(0, ...questions.map((each) => questionIds(frame, tokenizer, each).length));
    const searched = risk !== undefined || riskWorst !== undefined;
    const kept = searched ? 1 : keep ? Math.min(1, shareOf(keep, context)) : "default";
    const behind = asked + answerTokens;
    const positions = asking ? 2 * context + behind : "trained";
    return { tokens: context + behind, positions, kept, cacheType };
  };
}

function shareOf(keep: Keep, context: number): number {
  return "tokens" in keep ? keep.tokens / context : "ratio" in keep ? 1 - keep.ratio : keep.fraction;
}
