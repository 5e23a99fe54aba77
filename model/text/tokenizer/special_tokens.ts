/**
 * Which tokens steer the model, told by what they do. The type byte of a GGUF alone doesn't say: converters write
 * markers as NORMAL or USER_DEFINED, and then they would be spelled in bytes, end no answer, or come from any text.
 */

/** Token types of GGUF (`tokenizer.ggml.token_type`). */
export const TOKEN_TYPE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** Texts that end an answer in known models, beside the tokens that the file names. */
const END_TEXTS: ReadonlySet<string> = new Set([
  "<|im_end|>",
  "<|endoftext|>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|end_of_text|>",
  "<|end|>",
  "<|eot|>",
  "<|EOT|>",
  "<|eos|>",
  "<|end_of_turn|>",
  "<|endofturn|>",
  "<|END_OF_TURN_TOKEN|>",
  "<|return|>",
  "<|call|>",
  "<｜end▁of▁sentence｜>",
  "<end_of_turn>",
  "<turn|>",
  "<EOT>",
  "<eos>",
  "</s>",
  "[EOS]",
]);

/** Texts that begin a turn or a sequence and are not shaped like `<|…|>`. */
const START_TEXTS: ReadonlySet<string> = new Set(["<s>", "<bos>", "<start_of_turn>", "[INST]", "[/INST]", "[BOS]"]);

/** Nothing but a marker is written so; the second bar is DeepSeek's. */
const BARRED = /^<[|｜][^\s]*[|｜]>$/u;
/** What a template may write as one token: `<think>`, `[SYSTEM_PROMPT]`. */
const BRACKETED = /^(?:<\S+>|\[\S+\])$/u;

/** What `specialTokens` looks at. */
export interface TokenTable {
  readonly tokens: readonly string[];
  readonly types: ArrayLike<unknown>;
  /** Texts that merging makes; any text may hold them. */
  readonly made: Pick<ReadonlySet<string>, "has">;
  /** Ids that the file names as the beginning or the end of something. */
  readonly named: ReadonlySet<number>;
  /** The chat template, empty without one. */
  readonly template: string;
}

export interface SpecialTokens {
  /** Only a chat template may write these: a user's text never becomes one. */
  readonly control: ReadonlySet<string>;
  /** Those of `control` that are no text: they are left out of an answer. */
  readonly silent: ReadonlySet<string>;
  /** Those of `control` that end an answer by their text. */
  readonly ends: ReadonlySet<string>;
}

/** Sorts out the tokens that steer. Bytes and texts that merging makes of ordinary text stay ordinary. */
export function specialTokens(table: TokenTable): SpecialTokens {
  const control = new Set<string>(), silent = new Set<string>(), ends = new Set<string>();
  table.tokens.forEach((text, id) => {
    const kind = kindOf(text, id, table);
    if (kind === "text") return;
    control.add(text);
    if (kind !== "marker") silent.add(text);
    if (kind !== "marker" && END_TEXTS.has(text)) ends.add(text);
  });
  return { control, silent, ends };
}

/** `text` may come from anyone, `marker` from a template and from the model as text, `control` is never text. */
function kindOf(text: string, id: number, table: TokenTable): "text" | "marker" | "control" {
  const type = Number(table.types[id]);
  if (text === "" || type === TOKEN_TYPE.byte) return "text";
  if (type === TOKEN_TYPE.control) return "control";
  // A single character may be a byte of any text.
  if (text.length <= 2 && [...text].length === 1) return "text";
  if (table.named.has(id) || BARRED.test(text)) return "control";
  const steers = END_TEXTS.has(text) || START_TEXTS.has(text);
  if (!steers && !BRACKETED.test(text)) return "text";
  const written = steers || table.template.includes(text);
  // User-defined ones come from any text and unused ones from none, unless a template needs them; the others come
  // from where joining makes them.
  const asWritten = type === TOKEN_TYPE.userDefined || type === TOKEN_TYPE.unused;
  if (asWritten ? !written : table.made.has(text)) return "text";
  return steers ? "control" : "marker";
}
