/** The JSON Schema of what commands print, from the types in `cli/json/outputs.ts`: draft 2020-12. */
import { join } from "node:path";
import { createGenerator } from "ts-json-schema-generator";
import { sectionOf } from "../cli/settings/keys.ts";
import { ROOT } from "./repository.ts";

/** Where it lies, for the program to print and for the package to carry. */
export const SCHEMA_FILE = "cli/schema/palisade.schema.json";

type Node = Record<string, unknown>;

/** Measured figures that can come to nothing, or overflow: where they are not finite, null is printed. */
const MAY_BE_NULL: Readonly<Record<string, readonly string[]>> = {
  HeadReport: ["largestRisk", "riskSum", "evictedMass", "outputBound", "projectedBound"],
  LayerCertificateReport: ["largestRisk", "riskSum", "evictedMass", "outputBound", "projectedBound"],
  HeadCertificateLine: ["largestRisk", "riskSum", "evictedMass", "outputBound", "projectedBound"],
  CertificateReport: ["risk"],
  RefitFigures: ["before", "after"],
  Coverage: ["margin", "heldOut", "shifted"],
  Quality: ["loss", "recall", "best"],
  Row: ["kl", "bytes"],
};

/** What is said of properties by their names, where their types say nothing. */
const UNITS: Readonly<Record<string, string>> = {
  ms: "Milliseconds.",
  bytes: "Bytes.",
  tokens: "Tokens.",
  kept: "Entries that stay.",
  evicted: "Entries that went.",
  layers: "Layers.",
  heads: "KV heads.",
  sha256: "SHA-256, lower-case hexadecimal.",
  score: "0 to 100.",
  samples: "Samples.",
  licence: "SPDX identifier.",
  message: "For people.",
  textTokens: "Tokens of each text.",
  kvHeads: "KV heads.",
  width: "Numbers in a hidden state.",
  keep: "What stays, as it was asked for.",
};

let text: string | undefined;

/** The schema as its file holds it. The compiler reads the types once. */
export function schemaText(): string {
  return text ??= `${JSON.stringify(schemaOfOutputs(), null, 2)}\n`;
}

function schemaOfOutputs(): Node {
  const { Outputs, FileLines, Failure, ...types } = definitionsOf("Published");
  const named = { ...placesOf(Outputs), ...placesOf(FileLines), failure: Failure };
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    $id: "urn:palisade-kv:output",
    title: "What palisade prints as JSON",
    description:
      "Every command's output under --json by the command's name in $defs, lines of results files (results), " +
      "and what a command prints when it fails (failure). evict and cell print a line of JSON each time.",
    anyOf: Object.keys(named).map((name) => ({ $ref: `#/$defs/${name}` })),
    $defs: { ...named, ...sorted(types) },
  };
}

/** An interface's properties as definitions of their own: `models list` becomes `models-list`. */
function placesOf(root: Node): Record<string, Node> {
  return Object.fromEntries(
    Object.entries(root.properties as Record<string, Node>).map(([name, node]) => [sectionOf(name), node]),
  );
}

function definitionsOf(type: string): Record<string, Node> {
  const generator = createGenerator({
    path: join(ROOT, "cli/json/outputs.ts"),
    tsconfig: join(ROOT, "tools/tsconfig.schema.json"),
    type,
    expose: "export",
    topRef: false,
    // The checker has said what it has to say.
    skipTypeCheck: true,
    additionalProperties: false,
    sortProps: false,
  });
  const definitions = generator.createSchema(type).definitions as Record<string, Node>;
  for (const [name, properties] of Object.entries(MAY_BE_NULL)) {
    for (const each of properties) allowNull(definitions[name], each);
  }
  return Object.fromEntries(Object.entries(definitions).map(([name, node]) => [name, modernised(node)]));
}

/** @throws RangeError where the property isn't a number any more. */
function allowNull(definition: Node, property: string): void {
  const node = (definition.properties as Record<string, Node>)[property];
  if (node?.type !== "number") throw new RangeError(`${property} is no number: ${JSON.stringify(definition)}`);
  node.type = ["number", "null"];
}

/** From draft 7 to 2020-12, with units, and without the marks of links in comments. */
function modernised(node: Node): Node {
  const entries = Object.entries(node).flatMap(([key, value]): [string, unknown][] => {
    if (key === "$schema") return [];
    if (key === "$ref") return [[key, (value as string).replace("#/definitions/", "#/$defs/")]];
    if (key === "description") return [[key, (value as string).replace(/\{@link ([^}]*)\}/g, "$1")]];
    if (key === "properties") return [[key, propertiesOf(value as Record<string, Node>)]];
    if (key === "items" && Array.isArray(value)) return [["prefixItems", value.map(modernised)], ["items", false]];
    if (key === "additionalItems") return [];
    if (Array.isArray(value)) return [[key, value.map((each) => isNode(each) ? modernised(each) : each)]];
    return [[key, isNode(value) ? modernised(value) : value]];
  });
  return Object.fromEntries(entries);
}

function propertiesOf(properties: Record<string, Node>): Record<string, Node> {
  return Object.fromEntries(
    Object.entries(properties).map(([name, node]) => {
      const unit = Object.hasOwn(UNITS, name) && node.description === undefined && { description: UNITS[name] };
      return [name, { ...modernised(node), ...unit }];
    }),
  );
}

function isNode(value: unknown): value is Node {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function sorted<T>(record: Record<string, T>): Record<string, T> {
  return Object.fromEntries(Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1)));
}
