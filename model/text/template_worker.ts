/**
 * Renders one chat template; runs in a worker, because a template comes with the model file and may be hostile. The
 * worker can be ended from outside; before that, `jinja/interpreter.ts` watches time and memory itself (Bun and
 * browsers have no heap limit for workers).
 */
import { Refusal, render } from "./jinja/interpreter.ts";
import { parseTemplate } from "./jinja/parse.ts";
import { type LocalTime, strftime } from "./jinja/strftime.ts";
import { Callable, fromJson, text, type Value } from "./jinja/values.ts";

export interface RenderRequest {
  readonly template: string;
  readonly inputs: readonly RenderInput[];
  /** Milliseconds for parsing and interpreting, for each input. */
  readonly timeoutMs: number;
}

export interface RenderInput {
  /** Variables of the template, JSON. */
  readonly variables: Readonly<Record<string, unknown>>;
  /** What `strftime_now` tells. */
  readonly now: LocalTime;
  /** Most characters of the result. */
  readonly maxLength: number;
}

export type RenderReply =
  | {
    readonly text: string;
    /** Whether the template asked for the date. */
    readonly dated: boolean;
  }
  | { readonly refused: "timeout" | "size" | "failed"; readonly message: string };

/** Renders each input; what a template does wrong comes back as `refused`. */
export default function renderTemplate({ template, inputs, timeoutMs }: RenderRequest): RenderReply[] {
  return inputs.map((input) => renderOne(template, input, timeoutMs));
}

function renderOne(template: string, { variables, now, maxLength }: RenderInput, timeoutMs: number): RenderReply {
  try {
    let dated = false;
    const names = new Map<string, Value>(Object.entries(variables).map(([name, value]) => [name, fromJson(value)]));
    names.set(
      "strftime_now",
      new Callable("strftime_now", ([format]) => {
        dated = true;
        return strftime(now, text(format ?? ""));
      }),
    );
    const result = render(parseTemplate(template), names, timeoutMs);
    if (result.length > maxLength) {
      throw new Refusal("size", `it made ${result.length} characters, more than ${maxLength}`);
    }
    return { text: result, dated };
  } catch (error) {
    if (error instanceof Refusal) return { refused: error.reason, message: error.message };
    return { refused: "failed", message: error instanceof Error ? error.message : String(error) };
  }
}
