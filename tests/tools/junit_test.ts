import assert from "node:assert/strict";
import { parseJunit } from "../../tools/junit.ts";

const report = `<testsuites><testsuite name="./a_test.ts">
  <testcase name="f() &lt;works&gt;" classname="./a_test.ts" time="0"></testcase>
  <testcase name="g()" classname="./a_test.ts" time="0"><failure message="1 test step failed">…</failure></testcase>
  <testcase name="g() &gt; step" classname="./a_test.ts" time="0"><failure message="no">…</failure></testcase>
  <testcase name="g() &gt; other" classname="./a_test.ts" time="0"><skipped/></testcase>
  <testcase name="a &gt; b" classname="./a_test.ts" time="0"/>
</testsuite></testsuites>`;

Deno.test("parseJunit() counts a test once, whatever its steps do, and keeps skipped steps", () => {
  const outcomes = parseJunit(report).map(({ name, outcome }) => `${name}: ${outcome}`);
  assert.deepEqual(outcomes, ["f() <works>: passed", "g(): failed", "g() > other: skipped", "a > b: passed"]);
});
