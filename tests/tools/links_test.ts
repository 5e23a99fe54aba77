import assert from "node:assert/strict";
import { anchorsOf, linkProblem, targetsOf } from "../../tools/links.ts";

Deno.test("targetsOf() finds links outside code", () => {
  const text =
    '[a](x.md "t") ![b](<y.png>) `[c](no)` <https://a.example> <a href="z">\n\n[r]: w.md\n\n```\n[d](no)\n```\n';
  assert.deepEqual(targetsOf(text).sort(), ["https://a.example", "w.md", "x.md", "y.png", "z"]);
});

Deno.test("anchorsOf() makes headings' names as hosts do", () => {
  const anchors = anchorsOf('# A `b`, c!\n## Twice\n## Twice\n<a id="own"></a>\n```\n# no\n```\n');
  assert.deepEqual([...anchors], ["a-b-c", "twice", "twice-1", "own"]);
});

Deno.test("linkProblem() finds missing files, headings and bad addresses", () => {
  assert.equal(linkProblem("a.md", "LICENSE"), undefined);
  assert.equal(linkProblem("docs/a.md", "../LICENSE"), undefined);
  assert.equal(linkProblem("a.md", "https://a.example/b#c"), undefined);
  assert.match(linkProblem("docs/a.md", "LICENSE") ?? "", /does not exist/);
  assert.match(linkProblem("a.md", "../../x") ?? "", /outside/);
  assert.match(linkProblem("a.md", "/LICENSE") ?? "", /outside/);
  assert.match(linkProblem("a.md", "https://nodot") ?? "", /no web address/);
});
