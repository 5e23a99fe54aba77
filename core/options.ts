/**
 * Options as refusals name them: by the names of the library, `maxCache`. Each surface says them its own way, the command
 * line with dashes (`cli/failure.ts`), so messages hold them apart from their words.
 */

/** Every option that a refusal may name: of `loadModel`, `openContext`, `ask`, calibration and sweeps. */
export const OPTION_NAMES = [
  "answerPrefix",
  "backend",
  "beyondTrained",
  "bytes",
  "cacheType",
  "context",
  "dense",
  "effort",
  "explain",
  "frame",
  "gate",
  "haystack",
  "html",
  "keep",
  "keyChannels",
  "kinds",
  "length",
  "maxCache",
  "maxCache.rule",
  "maxCacheBytes",
  "merge",
  "model",
  "models",
  "policies",
  "policy",
  "positions",
  "question",
  "queue",
  "refit",
  "risk",
  "riskWorst",
  "rope",
  "seed",
  "system",
  "tasks",
  "temperature",
  "text",
  "think",
  "threads",
  "salt",
  "snapshot",
  "snapshots",
  "softTokens",
  "stop",
  "tokens",
  "topK",
  "topP",
  "withText",
] as const;

/** One of {@link OPTION_NAMES}. */
export type OptionName = typeof OPTION_NAMES[number];

/** An option where a message, or the place of a refusal, names it. */
export interface OptionMention {
  readonly option: OptionName;
}

/** A message in pieces. */
export type Said = readonly (string | OptionMention)[];

/** Names an option. */
export function option(name: OptionName): OptionMention {
  return { option: name };
}

/** A message that names options: ``say`pass ${option("beyondTrained")}` ``. Messages in it are taken apart. */
export function say(
  words: TemplateStringsArray,
  ...values: readonly (string | number | OptionMention | Said)[]
): Said {
  return words.flatMap((word, i) => i < values.length ? [word, ...piecesOf(values[i])] : [word]);
}

function piecesOf(value: string | number | OptionMention | Said): Said {
  if (typeof value === "number") return [String(value)];
  return typeof value === "string" || "option" in value ? [value] : value;
}

/** Words between messages, e.g. a comma: one message. */
export function joined(messages: readonly (OptionMention | Said)[], between: string): Said {
  return messages.flatMap((each, i) => [...(i > 0 ? [between] : []), ...piecesOf(each)]);
}

/** A message as a surface says it that calls options by `nameOf`. */
export function spoken(said: Said, nameOf: (option: OptionName) => string = (name) => name): string {
  return said.map((piece) => typeof piece === "string" ? piece : nameOf(piece.option)).join("");
}
