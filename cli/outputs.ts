/** What a command reads and writes, for `checkOutputs`, and how it writes texts. */
import { parsePolicy, type PolicyText } from "../core/policy/grammar.ts";
import { partPaths } from "../model/file/gguf/split.ts";
import { MODELS, registeredPath } from "../model/store/store.ts";
import { type Input, type Output, type OutputKind, writeWhole } from "../runtime/output.ts";
import type { Io } from "./io.ts";

/** The outputs among these options that were asked for. */
export function outputsOf(
  options: readonly (readonly [where: string, path: string | undefined, kind: OutputKind])[],
): Output[] {
  return options.flatMap(([where, path, kind]) => path === undefined ? [] : [{ where, path, kind }]);
}

/** The inputs among these that were asked for. */
export function inputsOf(options: readonly (readonly [what: string, path: string | undefined])[]): Input[] {
  return options.flatMap(([what, path]) => path === undefined ? [] : [{ what, path }]);
}

/** The files of models by name or path, all parts of split ones, whether they are there or still to be fetched. */
export function modelInputs(names: readonly string[], io: Io): Input[] {
  const paths = names.flatMap((name) => partPaths(expectedPath(name, io)));
  return paths.map((path) => ({ path, what: "the model" }));
}

/** Where a model by name or path lies, or will lie. */
export function expectedPath(name: string, { runtime }: Io): string {
  return MODELS.some((model) => model.name === name) ? registeredPath(name, runtime) : name;
}

/** The files that policies name. PalisadeErrors `policy.syntax`. */
export function policyInputs(texts: readonly string[]): Input[] {
  return texts.flatMap((text) => filesOf(parsePolicy(text)).map((path) => ({ path, what: `a file of ${text}` })));
}

function filesOf({ settings, scorer }: PolicyText): string[] {
  const own = settings.filter(({ name }) => name === "file").map(({ value }) => value);
  return [...own, ...(scorer ? filesOf(scorer) : [])];
}

/** Writes a text file whole, as UTF-8. */
export async function writeText(io: Io, path: string, text: string): Promise<void> {
  await writeWhole(io.runtime, path, new TextEncoder().encode(text));
}
