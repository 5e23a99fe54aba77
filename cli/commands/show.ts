/** `palisade show`: a text with every token shaded by how many heads keep it. */
import { parseKeep } from "../../core/select/budget.ts";
import { inputError } from "../../core/errors.ts";
import { escapeHtml } from "../../evaluate/report/escape.ts";
import { PAGE, page } from "../../evaluate/report/html.ts";
import {
  type Colours,
  legendHtml,
  legendText,
  shadingHtml,
  shadingOf,
  shadingText,
} from "../../evaluate/report/shading.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { loadPolicy } from "../../model/policy_files/policy_files.ts";
import { openContext } from "../../model/session.ts";
import { type EngineOptions, startModel } from "./ask.ts";
import { formatCount, formatShare } from "../print/format.ts";
import { EXIT, type Io } from "../io.ts";
import { createProgress } from "../print/progress.ts";
import { checkOutputs } from "../../runtime/output.ts";
import { modelInputs, outputsOf, policyInputs, writeText } from "../outputs.ts";

export interface ShowCommand extends EngineOptions {
  readonly context: string;
  /** Undefined: the library's default. */
  readonly policy?: string;
  readonly keep: string;
  readonly color: "auto" | Colours;
  readonly html?: string;
  readonly beyondTrained?: boolean;
}

/** Runs the command; returns the exit code. */
export async function show(command: ShowCommand, io: Io): Promise<number> {
  await checkOutputs(io.runtime, outputsOf([["--html", command.html, PAGE]]), [
    { path: command.context, what: "the context" },
    ...modelInputs([command.model], io),
    ...policyInputs(command.policy === undefined ? [] : [command.policy]),
  ]);
  const policy = command.policy === undefined ? undefined : await loadPolicy(command.policy, io.runtime);
  const keep = parseKeep(command.keep);
  const text = await io.runtime.readText(command.context);
  if (text.trim() === "") throw inputError("context.empty", `No text in ${command.context}`, "--context");
  const progress = createProgress(io.interactive && !command.quiet);
  await using model = await startModel(command, io, progress);
  using context = await openContext(model, text, {
    policy,
    keep,
    beyondTrained: command.beyondTrained,
    signal: io.signal,
    onLayer: (done, layers) => progress.update("Reading, layer", done, layers),
  });
  progress.clear();
  const shading = shadingOf(context.cache, model.tokenizer, contextIds(model.frame, model.tokenizer, text));
  const entries = context.tokens * shading.heads, kept = context.cache.entries();
  const title = `${context.policy.name} at ${command.keep} of ${model.name}: ${formatCount(kept)} of ` +
    `${formatCount(entries)} entries kept (${formatShare(kept, entries)})`;
  if (command.html !== undefined) {
    const body = `<h1>${escapeHtml(title)}</h1>\n${legendHtml(shading.heads)}\n${shadingHtml(shading)}`;
    await writeText(io, command.html, page("what is kept", body));
  }
  const colours = command.color === "auto" ? coloursOf(io) : command.color;
  io.paint(`${shadingText(shading, colours)}${legendText(shading.heads, colours)}`);
  io.out(`${title}\n`);
  return EXIT.ok;
}

/** NO_COLOR (no-color.org) and a standard output that is no terminal turn colours off. */
function coloursOf({ runtime }: Io): Colours {
  if (runtime.environment("NO_COLOR") !== undefined || !runtime.isTerminal("stdout")) return "none";
  if (/^(truecolor|24bit)$/.test(runtime.environment("COLORTERM") ?? "")) return "truecolor";
  return /256color/.test(runtime.environment("TERM") ?? "") ? "256" : "none";
}
