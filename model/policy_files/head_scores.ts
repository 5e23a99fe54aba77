/** Files of head scores, for `headkv(file=scores.json)`. */
import { inputError } from "../../core/errors.ts";
import type { HeadScores } from "../../core/policy/policy.ts";
import type { Runtime } from "../../runtime/interface.ts";

/** Longest file; scores of 1000 layers × 1000 heads need less. */
const MAX_BYTES = 2 ** 24;

/**
 * Reads and checks one file.
 * @throws PalisadeError `file.*`, `text.*`, and as {@link parseHeadScores}.
 */
export async function readHeadScores(path: string, runtime: Pick<Runtime, "readText">): Promise<HeadScores> {
  return parseHeadScores(await runtime.readText(path, { maxBytes: MAX_BYTES }), path);
}

/**
 * Head scores from JSON: a list of layers, each a list of numbers; or, as published for HeadKV and retrieval heads, an
 * object `{"layer-head": number or list of numbers}`, lists meaned. `file` is its name for messages.
 * @throws PalisadeError `head-scores.syntax`, `head-scores.shape`, `head-scores.value`.
 */
export function parseHeadScores(text: string, file: string): HeadScores {
  const scores = rowsOf(parseJson(text, file), file);
  const width = scores[0]?.length ?? 0;
  scores.forEach((row, layer) => {
    if (row.length === 0 || row.length !== width) {
      throw refuse("shape", file, `layer ${layer} has ${row.length} heads, layer 0 has ${width}`);
    }
    row.forEach((score, head) => {
      if (typeof score !== "number" || !(score >= 0 && score < Infinity)) {
        throw refuse("value", file, `layer ${layer}, head ${head} is ${JSON.stringify(score)}`);
      }
    });
  });
  if (!scores.flat().some((score) => Number(score) > 0)) throw refuse("value", file, "no head scores above 0");
  return scores as HeadScores;
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw refuse("syntax", file, `it is no JSON (${cause instanceof Error ? cause.message : cause})`);
  }
}

function rowsOf(json: unknown, file: string): unknown[][] {
  if (Array.isArray(json) && json.length > 0 && json.every((row) => Array.isArray(row))) return json;
  if (typeof json === "object" && json !== null && !Array.isArray(json)) return rowsByName(json, file);
  throw refuse("shape", file, "it holds no list of layers");
}

/** `{"0-3": [0.1, 0.3]}`: layer 0, head 3, scores to be meaned. */
function rowsByName(json: object, file: string): unknown[][] {
  const rows: unknown[][] = [];
  for (const [name, value] of Object.entries(json)) {
    const match = /^(\d{1,4})-(\d{1,4})$/.exec(name);
    if (!match) throw refuse("shape", file, `${JSON.stringify(name)} is no "layer-head"`);
    const layer = Number(match[1]);
    while (rows.length <= layer) rows.push([]);
    rows[layer][Number(match[2])] = Array.isArray(value) ? meanOf(value) : value;
  }
  if (rows.length === 0) throw refuse("shape", file, "it holds no heads");
  return rows.map((row) => Array.from(row));
}

/** NaN, which is refused later, when anything in it is no number. */
function meanOf(values: readonly unknown[]): number {
  return values.reduce<number>((sum, value) => sum + (typeof value === "number" ? value : NaN), 0) / values.length;
}

function refuse(what: "syntax" | "shape" | "value", file: string, found: string) {
  const wanted = "want [layers][heads] of numbers that are not negative, not all 0";
  return inputError(`head-scores.${what}`, `Cannot take head scores from ${file}: ${found}; ${wanted}`, file);
}
