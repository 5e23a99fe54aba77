/** Chat templates: Jinja text from a model file, rendered where it can be stopped. */
import { inputError, PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { siblingModule } from "../../runtime/sibling_module.ts";
import { type LocalTime, localTime } from "./jinja/strftime.ts";
import type { RenderReply, RenderRequest } from "./template_worker.ts";

export interface ChatMessage {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

export interface ChatInput {
  readonly messages: readonly ChatMessage[];
  /** Ends the text where the assistant's reply begins. Default true. */
  readonly addGenerationPrompt?: boolean;
  /** What the template sees as `bos_token` and `eos_token`. Default empty. */
  readonly bosToken?: string;
  readonly eosToken?: string;
  /** What the template sees as `enable_thinking`; missing: nothing. */
  readonly think?: boolean;
}

/** A prompt, and whether the template asked `strftime_now` for the date. */
export interface Rendered {
  readonly text: string;
  readonly dated: boolean;
}

export interface RenderOptions {
  /** Gives the worker the template runs in. */
  readonly runtime: Pick<Runtime, "runSandboxed">;
  /** Milliseconds the template may take. Default 5000; starting the worker is not counted. */
  readonly timeoutMs?: number;
  /** Most characters it may make beyond the messages. Default 1 MiB. */
  readonly maxLength?: number;
  readonly signal?: AbortSignal;
  /** The time that `strftime_now` tells. Default now, in this machine's time zone. */
  readonly now?: LocalTime;
}

const KEY = "tokenizer.chat_template";
/** Ten times the largest in use. */
const MAX_TEMPLATE = 1024 * 1024;
/** A worker starts in some 100 ms; on a busy machine in seconds. */
const WORKER_START_MS = 15_000;
const MAX_HEAP_MB = 512;

/**
 * The prompt a template makes of a conversation.
 *
 * Throws PalisadeError input, `where` = `tokenizer.chat_template`: `template.timeout` (too slow or endless),
 * `template.size` (the template, its result or its memory is too large), `template.failed` (not Jinja, or it raised an
 * exception; the message says which).
 */
export async function renderChat(template: string, input: ChatInput, options: RenderOptions): Promise<string> {
  const [rendered] = await renderChats(template, [input], options);
  if (rendered instanceof PalisadeError) throw rendered;
  return rendered.text;
}

/**
 * The prompts a template makes of several conversations, in one worker. What `renderChat` throws for one of them
 * stands in its place; what no other could survive either (time, memory) is thrown.
 */
export async function renderChats(
  template: string,
  inputs: readonly ChatInput[],
  options: RenderOptions,
): Promise<(Rendered | PalisadeError)[]> {
  if (template.length > MAX_TEMPLATE) {
    throw refuse("size", `it has ${template.length} characters, more than ${MAX_TEMPLATE}`);
  }
  const now = options.now ?? localTime(new Date());
  const replies = await runWorker({
    template,
    inputs: inputs.map((input) => ({
      variables: {
        messages: input.messages,
        // As apply_chat_template of transformers passes them.
        tools: null,
        documents: null,
        add_generation_prompt: input.addGenerationPrompt ?? true,
        bos_token: input.bosToken ?? "",
        eos_token: input.eosToken ?? "",
        ...(input.think !== undefined && { enable_thinking: input.think, thinking: input.think }),
      },
      now,
      maxLength: (options.maxLength ?? 1024 * 1024) +
        input.messages.reduce((sum, message) => sum + message.content.length, 0),
    })),
    timeoutMs: options.timeoutMs ?? 5000,
  }, options);
  return replies.map((reply) => "refused" in reply ? refuse(reply.refused, reply.message) : reply);
}

async function runWorker(request: RenderRequest, options: RenderOptions): Promise<RenderReply[]> {
  try {
    return await options.runtime.runSandboxed<RenderReply[]>(
      siblingModule("./template_worker", import.meta.url),
      request,
      {
        timeoutMs: request.timeoutMs * request.inputs.length + WORKER_START_MS,
        maxHeapMb: MAX_HEAP_MB,
        signal: options.signal,
      },
    );
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
    if (error.code === "sandbox.timeout") throw refuse("timeout", error.message, error);
    if (error.code === "sandbox.memory") throw refuse("size", error.message, error);
    throw error;
  }
}

function refuse(reason: "timeout" | "size" | "failed", problem: string, cause?: unknown): PalisadeError {
  const message = `Can't render the model's chat template: ${problem.slice(0, 300)}`;
  return inputError(`template.${reason}`, message, KEY, cause);
}
