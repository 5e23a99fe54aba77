/** A byte-level vocabulary small enough to read: what tests need of `tokenizer.ggml.*`. */
import { byteCharacters } from "../../model/text/tokenizer/byte_alphabet.ts";

export const CONTROL_TOKENS = ["<|start|>", "<|end|>", "<|end|>>"];

export interface TinyOptions {
  /** Merges as `left right`, each making a token. */
  readonly merges?: readonly string[];
  /** Control tokens beside `CONTROL_TOKENS`. */
  readonly control?: readonly string[];
  readonly userDefined?: readonly string[];
  /** Bytes that get no token. */
  readonly without?: readonly number[];
}

/** Ids: the bytes, the merges, the control tokens, the user-defined ones. BOS is `<|start|>`, EOS `<|end|>`. */
export function tinyMetadata(options: TinyOptions = {}): Map<string, unknown> {
  const { merges = [], control = [], userDefined = [], without = [] } = options;
  const special = [...CONTROL_TOKENS, ...control];
  const ordinary = [
    ...byteCharacters.filter((_, byte) => !without.includes(byte)),
    ...merges.map((merge) => merge.replace(" ", "")).filter((token) => !special.includes(token)),
  ];
  const tokens = [...ordinary, ...special, ...userDefined];
  const types = tokens.map((_, id) => id < ordinary.length ? 1 : id < ordinary.length + special.length ? 3 : 4);
  return new Map<string, unknown>([
    ["tokenizer.ggml.model", "gpt2"],
    ["tokenizer.ggml.pre", "gpt-2"],
    ["tokenizer.ggml.tokens", tokens],
    ["tokenizer.ggml.token_type", Int32Array.from(types)],
    ["tokenizer.ggml.merges", merges],
    ["tokenizer.ggml.bos_token_id", tokens.indexOf("<|start|>")],
    ["tokenizer.ggml.eos_token_id", tokens.indexOf("<|end|>")],
    ["tokenizer.ggml.add_bos_token", false],
  ]);
}
