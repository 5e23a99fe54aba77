/** Reads the JUnit report `deno test --junit-path` writes (its shape is fixed, so a few patterns are enough). */

export interface TestCase {
  readonly file: string;
  readonly name: string;
  readonly outcome: "passed" | "failed" | "skipped";
}

const ENTITIES: Record<string, string> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };

function unescape(text: string): string {
  return text.replace(/&(?:#x([0-9a-fA-F]+)|#(\d+)|(\w+));/g, (whole, hex, decimal, name) => {
    if (hex) return String.fromCodePoint(parseInt(hex, 16));
    if (decimal) return String.fromCodePoint(Number(decimal));
    return ENTITIES[name] ?? whole;
  });
}

function outcomeOf(body: string): TestCase["outcome"] {
  if (body.includes("<failure") || body.includes("<error")) return "failed";
  return body.includes("<skipped") ? "skipped" : "passed";
}

/**
 * The test cases of a report. Steps are left out, as a failed step fails its test and would count twice; a skipped
 * step stays in, because it needs a reason like any other skip.
 */
export function parseJunit(xml: string): TestCase[] {
  const all: TestCase[] = [];
  const pattern = /<testcase name="([^"]*)" classname="([^"]*)"[^>]*?(?:\/>|>([\s\S]*?)<\/testcase>)/g;
  for (const [, name, file, body = ""] of xml.matchAll(pattern)) {
    all.push({ name: unescape(name), file: unescape(file), outcome: outcomeOf(body) });
  }
  const tests = new Set(all.map(({ file, name }) => `${file}\n${name}`));
  const isStep = ({ file, name }: TestCase) => {
    const parts = name.split(" > ");
    for (let length = 1; length < parts.length; length++) {
      if (tests.has(`${file}\n${parts.slice(0, length).join(" > ")}`)) return true;
    }
    return false;
  };
  return all.filter((test) => test.outcome === "skipped" || !isStep(test));
}
