/** String methods and formats in templates, against Python's jinja2 (tools/make_expression_cases.py). */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import type { LocalTime } from "../../model/text/jinja/strftime.ts";
import renderTemplate from "../../model/text/template_worker.ts";

interface Case {
  readonly template: string;
  /** What it makes; without it, Python raises. */
  readonly text?: string;
  readonly error?: string;
}

const cases = JSON.parse(
  await readFile(new URL("../data/template_expressions.json", import.meta.url), "utf8"),
) as readonly Case[];

const NOW = JSON.parse(await readFile(new URL("../data/templates.json", import.meta.url), "utf8")).now as LocalTime;

Deno.test(`${cases.length} expressions on strings do what they do in Python`, () => {
  const different = cases.flatMap(({ template, text, error }) => {
    const inputs = [{ variables: {}, now: NOW, maxLength: 1e6 }];
    const [reply] = renderTemplate({ template, inputs, timeoutMs: 5000 });
    const ours = "refused" in reply ? undefined : reply.text;
    return ours === text ? [] : [{ template, ours: ours ?? reply, python: text ?? error }];
  });
  assert.deepEqual(different, []);
});
