/** `palisade show`: a text with every token shaded by how many heads keep it. */
import { parseKeep } from "../../core/select/budget.ts";
import { inputError, option } from "../../core/errors.ts";
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
import { type Context, openContext } from "../../model/session.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { command } from "../command.ts";
import { DEFAULT_KEEP, DEFAULT_POLICY, ENGINE, startModel } from "../engine.ts";
import { expectedOf } from "../expected.ts";
import { formatCount, formatShare } from "../print/format.ts";
import { EXIT, type Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { createProgress } from "../print/progress.ts";
import { policyWords } from "../words.ts";
import { checkOutputs } from "../../runtime/output.ts";
import { modelInputs, outputsOf, policyInputs, writeText } from "../outputs.ts";

const OPTIONS = {
  context: { value: "file", help: "the text, UTF-8; - reads standard input", required: true },
  keep: { value: "amount", help: "what stays: 20%, or tokens per head", shown: DEFAULT_KEEP },
  policy: {
    value: "name",
    help: "see: palisade policies",
    shown: DEFAULT_POLICY,
    words: policyWords,
    here: "policies",
  },
  html: { value: "file", help: "write it as an HTML file too" },
  beyondTrained: { help: "allow more context than the model was trained on" },
  json: { help: "print one object: tokens, and how many heads keep each" },
  ...ENGINE,
} satisfies OptionTable;

type ShowOptions = Values<typeof OPTIONS>;

/** `palisade show`. */
export const showCommand = command({
  options: OPTIONS,
  run: show,
});

/** Runs the command; returns the exit code. */
async function show(options: ShowOptions, io: Io): Promise<number> {
  await checkOutputs(io.runtime, outputsOf([["--html", options.html, PAGE]]), [
    { path: options.context, what: "the context" },
    ...modelInputs([options.model], io),
    ...policyInputs(options.policy === undefined ? [] : [options.policy]),
  ]);
  const policy = options.policy === undefined ? undefined : await loadPolicy(options.policy, io.runtime);
  const keep = options.keep === undefined ? undefined : parseKeep(options.keep);
  const text = await io.runtime.readText(options.context);
  if (text.trim() === "") throw inputError("context.empty", `No text in ${options.context}`, option("context"));
  const progress = createProgress(io.interactive && !options.quiet);
  await using model = await startModel(options, io, progress, { expected: expectedOf(text, { keep }) });
  using context = await openContext(model, text, {
    policy,
    keep,
    beyondTrained: options.beyondTrained,
    signal: io.signal,
    onLayer: (done, layers) => progress.update("Reading, layer", done, layers),
  });
  progress.clear();
  const shading = shadingOf(context.cache, model.tokenizer, contextIds(model.frame, model.tokenizer, text));
  const entries = context.tokens * shading.heads, kept = context.cache.globalEntries();
  const keepText = keptText(options.keep, context), { name: policyName } = context.policy;
  const title = `${policyName} at ${keepText} of ${model.name}: ${formatCount(kept)} of ` +
    `${formatCount(entries)} entries kept (${formatShare(kept, entries)})`;
  if (options.html !== undefined) {
    const body = `<h1>${escapeHtml(title)}</h1>\n${legendHtml(shading.heads)}\n${shadingHtml(shading)}`;
    await writeText(io, options.html, page("what is kept", body));
  }
  if (options.json) {
    printJson(io, "show", { model: model.name, policy: policyName, keep: keepText, entries, kept, shading });
    return EXIT.ok;
  }
  const colours = coloursOf(io);
  io.paint(`${shadingText(shading, colours)}${legendText(shading.heads, colours)}`);
  io.out(`${title}\n`);
  return EXIT.ok;
}

/** What was to stay, as asked, or as the default came to. */
function keptText(asked: string | undefined, { leastKept, budget }: Context): string {
  return asked ?? (leastKept ? `${formatCount(budget.perHead)} tokens per head` : DEFAULTS.keep);
}

/** Ten shades are more than 16 colours have: a terminal of those gets 256, where colours were asked for, or marks. */
function coloursOf({ styles: { out: { depth } }, runtime }: Io): Colours {
  if (depth !== "16") return depth;
  return runtime.isTerminal("stdout") ? "none" : "256";
}
