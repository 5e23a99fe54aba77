/** `palisade schema`: the JSON Schema of what commands print. */
import { inputError, resourceError } from "../../core/errors.ts";
import { adviceFor } from "../../core/policy/nearest_name.ts";
import { packageData } from "../../runtime/package_data.ts";
import { command, leaves } from "../command.ts";
import { EXIT, EXIT_CODES, type Io } from "../io.ts";
import type { JsonSchema } from "../json/outputs.ts";
import { printJson } from "../json/print.ts";
import { allCommands } from "../list.ts";
import { sectionOf } from "../settings/keys.ts";

/** `palisade schema`. */
export const schemaCommand = command({
  argument: "[command...]",
  words: async () => [...new Set(leaves(await allCommands()).flatMap(({ name }) => name.split(" "))), "results"],
  options: { json: { help: "refusals as JSON; the schema is JSON anyway" } },
  notes: [
    "Of one command: what it prints under --json, or when it fails; without a name:",
    "all of them. `results`: a line of what eval appends to.",
    EXIT_CODES,
  ],
  run: printSchema,
});

/** The published schema. */
interface Whole extends JsonSchema {
  readonly $defs: Readonly<Record<string, unknown>>;
}

async function printSchema(_: object, io: Io, words: readonly string[]): Promise<number> {
  const whole = await readSchema(io);
  printJson(io, "schema", words.length === 0 ? whole : schemaOf(words.join(" "), whole));
  return EXIT.ok;
}

/** @throws PalisadeError resources `schema.missing` for a build that carries no data. */
async function readSchema({ runtime }: Io): Promise<Whole> {
  const [file] = await packageData(runtime, "schema");
  if (!file) throw resourceError("schema.missing", "This build carries no schema", "schema");
  return JSON.parse(new TextDecoder().decode(await file.read()));
}

/** Of one command, with the definitions that it needs alone. @throws PalisadeError input `schema.command`. */
function schemaOf(name: string, { $schema, $id, $defs }: Whole): JsonSchema {
  const section = sectionOf(name), names = Object.keys($defs).filter((each) => /^[a-z]/.test(each));
  if (!names.includes(section)) {
    const advice = adviceFor(section, names, `there are ${names.join(", ")}`);
    throw inputError("schema.command", `There is no output of ${name}: ${advice}`, "command");
  }
  const needed = neededBy([section, "failure"], $defs);
  return {
    $schema,
    $id: `${$id}:${section}`,
    title: section === "results" ? "A line of results of palisade eval" : `What palisade ${name} prints as JSON`,
    description: "The output, or what is printed when the command fails.",
    anyOf: [{ $ref: `#/$defs/${section}` }, { $ref: "#/$defs/failure" }],
    $defs: Object.fromEntries(Object.entries($defs).filter(([each]) => needed.has(each))),
  };
}

/** These definitions, and those that they refer to. */
function neededBy(names: readonly string[], $defs: Whole["$defs"]): Set<string> {
  const needed = new Set<string>(), open = [...names];
  for (let name = open.pop(); name !== undefined; name = open.pop()) {
    if (needed.has(name)) continue;
    needed.add(name);
    const text = JSON.stringify($defs[name]);
    for (const [, other] of text.matchAll(/"\$ref":"#\/\$defs\/([^"]*)"/g)) open.push(other);
  }
  return needed;
}
