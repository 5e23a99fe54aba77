/** Checks of printed JSON by the published schema. */
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "../../tools/repository.ts";

/** The schema as the package carries it. */
export const SCHEMA = JSON.parse(readFileSync(join(ROOT, "cli/schema/palisade.schema.json"), "utf8"));

const ajv = new Ajv2020({ strict: true, allowUnionTypes: true, allErrors: true, discriminator: false });
ajv.addSchema(SCHEMA);
const validators = new Map<string, ValidateFunction>();

/** What is wrong with a value that `output` (`models-list`, `failure`, a type) is to describe; nothing where it fits. */
export function schemaProblems(output: string, value: unknown): string[] {
  let validate = validators.get(output);
  if (!validate) {
    validate = ajv.compile({ $ref: `${SCHEMA.$id}#/$defs/${output}` });
    validators.set(output, validate);
  }
  if (validate(value)) return [];
  return validate.errors!.map(({ instancePath, message, params }) => {
    return `${instancePath || "the value"} ${message} ${JSON.stringify(params)}`;
  });
}

/** The JSON of a text, which must fit. */
export function fitting(output: string, text: string): unknown {
  const value: unknown = JSON.parse(text);
  assert.deepEqual(schemaProblems(output, value), [], `${output}: ${text.slice(0, 500)}`);
  return value;
}
