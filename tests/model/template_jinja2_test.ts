/** Templates in the shapes that models ship, against what Python's jinja2 makes of them (tools/make_template_cases.py). */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import type { LocalTime } from "../../model/text/jinja/strftime.ts";
import renderTemplate from "../../model/text/template_worker.ts";

interface Case {
  readonly name: string;
  readonly template: string;
  readonly variables: Record<string, unknown>;
  /** What it makes, or how it fails. */
  readonly text?: string;
  readonly error?: string;
  readonly message?: string;
}

interface Data {
  readonly jinja2: string;
  readonly now: LocalTime;
  readonly variables: Record<string, unknown>;
  readonly cases: readonly Case[];
}

const data = JSON.parse(await readFile(new URL("../data/templates.json", import.meta.url), "utf8")) as Data;

/** What we do otherwise, and why. */
const EXEMPT: Readonly<Record<string, string>> = {
  "with blocks":
    "the library's parser doesn't know the tag: refused, not rendered otherwise; no chat template needs it",
  "recursive loops": "the same",
  "chained comparison that is not one after the other":
    "the library's tree doesn't tell `a > b > c` from `(a > b) > c`, and templates write the second",
};

/** Failures whose message a user has to act on: these are equal word for word. */
const SAME_WORDS = new Set(["raised", "undefined"]);

/** Undefined where we do as Python does, otherwise what differs. */
function difference({ template, variables, text, error, message }: Case): string | undefined {
  const input = { variables: { ...data.variables, ...variables }, now: data.now, maxLength: 1e6 };
  const [reply] = renderTemplate({ template, inputs: [input], timeoutMs: 5000 });
  if (!("refused" in reply)) return reply.text === text ? undefined : `made ${JSON.stringify(reply.text)}`;
  if (error === undefined) return `refused: ${reply.message}`;
  return !SAME_WORDS.has(error) || reply.message === message ? undefined : `refused: ${reply.message}`;
}

for (const each of data.cases) {
  Deno.test(`a template as jinja2 ${data.jinja2} renders it: ${each.name}`, () => {
    const found = difference(each);
    if (Object.hasOwn(EXEMPT, each.name)) assert.ok(found, "exempt without need");
    else assert.equal(found, undefined, `jinja2: ${JSON.stringify(each.text ?? each.message)}`);
  });
}

Deno.test("templates agree with jinja2, all but those exempt", () => {
  const agree = data.cases.filter((each) => difference(each) === undefined).length;
  console.log(`${agree} of ${data.cases.length} templates as jinja2 ${data.jinja2} renders them`);
  assert.ok(data.cases.length >= 60);
  assert.equal(agree, data.cases.length - Object.keys(EXEMPT).length);
});
