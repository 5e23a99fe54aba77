/** Whether what is read fits the length a model was trained for: every refusal `context.too-long` of a reading. */
import { inputError, option, type PalisadeError, say, type Where } from "../../core/errors.ts";
import type { Said } from "../../core/options.ts";
import type { Budget, Policy } from "../../core/policy/policy.ts";
import type { ModelConfig } from "../config.ts";
import { rolls } from "./rolling.ts";

type Trained = Pick<ModelConfig, "name" | "contextLength">;

/**
 * A context that fills the trained length and isn't evicted on the way. There must be room for at least a question.
 * `rerotates`: positions close up, so that a policy which evicts on the way could read it.
 */
export function contextTooLong(
  { name, contextLength: trained }: Trained,
  tokens: number,
  policy: Policy,
  budget: Budget,
  rerotates: boolean,
): PalisadeError {
  const onTheWay = policy.evicts === "early" || rolls(policy);
  const way = !rerotates
    ? say`pass ${option("beyondTrained")} to read it all the same`
    : onTheWay
    ? `keep fewer than ${trained} tokens per head instead of ${budget.perHead}`
    : policy.meaning.kind === "predicted"
    ? `evict while reading, with gate(read=stream): ${policy.name} as it is scores all of it first`
    : `name a policy that scores a key when it is made, such as streaming-llm: ${policy.name} needs all of it`;
  const shorter = `shorten it to less than ${trained} tokens, question and answer included`;
  return tooLong(say`The context has ${tokens} tokens, but ${name} was trained on ${trained}: ${shorter}, or ${way}`);
}

/** Prompts that make the model repeat the context in chunks of `chunk` tokens end at position `last`. */
export function checkRepeatRoom({ name, contextLength }: Trained, last: number, chunk: number): void {
  if (last <= contextLength) return;
  const problem = `kvzip repeats the context behind itself and would need ${last} positions, but ${name} was trained ` +
    `on ${contextLength}`;
  const shorter = `shorten the context, set kvzip(chunk=…) below ${chunk}`;
  throw tooLong(say`${problem}: ${shorter}, or pass ${option("beyondTrained")}`);
}

/** The shortest prompt that makes the model repeat a piece of `chunk` tokens ends at position `last`. */
export function checkReplayRoom({ name, contextLength }: Trained, last: number, chunk: number): void {
  if (last <= contextLength) return;
  const problem = `self-gate repeats a part of the context and would need ${last} positions, but ${name} was trained ` +
    `on ${contextLength}`;
  throw tooLong(say`${problem}: set self-gate(chunk=…) below ${chunk}, or pass ${option("beyondTrained")}`);
}

/** `count` soft tokens behind a context of `length` tokens. */
export function checkProbeRoom({ name, contextLength }: Trained, length: number, count: number): void {
  if (length + count <= contextLength) return;
  const problem = `judge-q puts ${count} soft tokens behind the context and would need ${length + count} positions, ` +
    `but ${name} was trained on ${contextLength}`;
  throw tooLong(say`${problem}: shorten the context, or pass ${option("beyondTrained")}`);
}

/** Positions left below the trained length for a cache whose next token is at `position`; at least one. */
export function roomBelow({ contextLength: trained }: Trained, position: number): number {
  if (position < trained) return trained - position;
  throw tooLong(
    `The context doesn't fit the trained ${trained} tokens: one head alone would keep as many, so keep less`,
    option("keep"),
  );
}

function tooLong(message: string | Said, where: Where = option("context")): PalisadeError {
  return inputError("context.too-long", message, where);
}
