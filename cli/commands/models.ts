/** `palisade models list|pull|path|rm`. */
import { inputError } from "../../core/errors.ts";
import {
  cacheFolder,
  HUB_SUGGESTIONS,
  listModels as stored,
  modelPath,
  removeModel,
  type StoredModel,
} from "../../model/store/store.ts";
import { formatBytes } from "../print/format.ts";
import { command, type CommandBody } from "../command.ts";
import { EXIT, type Io } from "../io.ts";
import type { ModelPath } from "../json/outputs.ts";
import { JSON_SWITCH, printJson } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { fetchNamed } from "../obtain.ts";
import { createProgress } from "../print/progress.ts";
import { tableText } from "../print/table.ts";
import { modelWords } from "../words.ts";

const PULL = {
  offline: { help: "only check what is here" },
  quiet: { help: "no progress" },
  ...JSON_SWITCH,
} satisfies OptionTable;

type JsonOptions = Values<typeof JSON_SWITCH>;

/** `palisade models`. */
export const modelsCommand: CommandBody = {
  options: {},
  members: [
    command({ name: "list", summary: "named models, and which are here", options: JSON_SWITCH, run: listModels }),
    command({
      name: "pull",
      argument: "<name>",
      words: modelWords,
      summary: "fetch a model, by name or OWNER/REPOSITORY[:QUANT], and check its SHA-256",
      options: PULL,
      run: pullModel,
    }),
    command({
      name: "path",
      argument: "<name>",
      here: "models",
      summary: "print where the model's file is",
      options: JSON_SWITCH,
      run: printPath,
    }),
    command({
      name: "rm",
      argument: "<name>",
      here: "models",
      summary: "remove the model's file",
      options: JSON_SWITCH,
      run: remove,
    }),
  ],
};

/** Prints the named models and which of them are here. */
async function listModels(options: Values<typeof JSON_SWITCH>, io: Io): Promise<number> {
  const models = await stored(io.runtime);
  if (options.json) {
    printJson(io, "models list", models.map(({ model, ...here }) => ({ ...model, ...here })));
    return EXIT.ok;
  }
  const rows = models.map((each) => [
    each.model.name,
    each.model.summary,
    formatBytes(each.model.size),
    hereText(each),
  ]);
  const known = HUB_SUGGESTIONS.map(({ name, about, licence }) => [name, `about ${formatBytes(about)}`, licence]);
  io.out(
    `${tableText(["name", "what", "size", "here"], rows)}\ncache folder: ${cacheFolder(io.runtime)}\n\n` +
      "Any GGUF of the Hugging Face hub goes by OWNER/REPOSITORY[:QUANT], for example:\n" +
      `${tableText(["name", "size", "licence"], known)}\n`,
  );
  return EXIT.ok;
}

function hereText({ present, verified }: StoredModel): string {
  if (!present) return "no";
  return verified ? "yes, SHA-256 checked" : "damaged: pull it again";
}

/** Fetches a model, or checks the copy that is here; prints its path. */
async function pullModel(options: Values<typeof PULL>, io: Io, [name]: readonly string[]): Promise<number> {
  const path = await fetchNamed(name, io, createProgress(io.interactive && !options.quiet), options);
  tellPath("models pull", { name, path }, options, io);
  return EXIT.ok;
}

function tellPath(command: "models pull" | "models path", where: ModelPath, { json }: JsonOptions, io: Io): void {
  if (json) printJson(io, command, where);
  else io.out(`${where.path}\n`);
}

/** Prints the path of a model that is here. */
async function printPath(options: JsonOptions, io: Io, [name]: readonly string[]): Promise<number> {
  const path = await modelPath(name, io.runtime);
  if (await io.runtime.host?.info(path) === undefined) {
    throw inputError("model.absent", `it has not been fetched: run palisade models pull ${name}`, name);
  }
  tellPath("models path", { name, path }, options, io);
  return EXIT.ok;
}

/** Removes a model's file. */
async function remove({ json }: JsonOptions, io: Io, [name]: readonly string[]): Promise<number> {
  const freed = await removeModel(name, io.runtime);
  if (json) printJson(io, "models rm", { name, bytes: freed });
  else io.out(freed === 0 ? `${name} was not here\n` : `removed ${name}, ${formatBytes(freed)} freed\n`);
  return EXIT.ok;
}
