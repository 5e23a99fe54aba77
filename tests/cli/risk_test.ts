/** `ask` with a risk or a threshold in place of a budget, and with certificates, on a tiny model. */
import assert from "node:assert/strict";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { palisade } from "../_helper/io.ts";
import { TINY_MODEL } from "../_helper/workbench.ts";

const folder = await mkdtemp(join(tmpdir(), "palisade-risk-"));
const book = join(folder, "book.txt");
await writeFile(
  book,
  "She counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(4),
);
const ASK = ["ask", "--context", book, "--question", "How many?", "--model", TINY_MODEL, "--dense", "web"];
const SHORT = ["--max-tokens", "2"];

Deno.test("ask --risk reports the budget it chose, which --keep repeats", async () => {
  const { code, out, err } = await palisade([...ASK, ...SHORT, "--risk", "0.3", "--explain", "--json"]);
  assert.equal(code, 0, err);
  const report = JSON.parse(out);
  assert.deepEqual([report.risk.kind, report.risk.asked, report.risk.passes], ["mean", 0.3, 1]);
  assert.ok(report.risk.reached <= 0.3);
  assert.equal(report.keep.asked, "risk 0.3");
  assert.ok(Math.abs(report.certificate.risk - report.risk.reached) <= 1e-4);
  assert.ok(report.cache.peakBytes >= report.cache.fullBytes);
  const again = await palisade([...ASK, ...SHORT, "--keep", `${report.keep.tokensPerHead}`, "--explain", "--json"]);
  const kept = JSON.parse(again.out);
  assert.deepEqual(kept.cache.perLayer, report.cache.perLayer);
  assert.equal(kept.risk, null);
  kept.certificate.layers.forEach((layer: { evictedMass: number }, i: number) => {
    assert.ok(Math.abs(layer.evictedMass - report.certificate.layers[i].evictedMass) <= 1e-5);
  });
});

Deno.test("ask --risk reads again when the cache may not wait, and keeps the same", async () => {
  const [waits, again] = await Promise.all([[], ["--max-cache-bytes", "1000"]].map(async (more) => {
    return JSON.parse((await palisade([...ASK, ...SHORT, "--risk", "0.6", "--json", ...more])).out);
  }));
  assert.deepEqual(again.cache.perLayer, waits.cache.perLayer);
  assert.ok(again.risk.passes > 1);
});

Deno.test("ask --risk-worst evicts by defensive-risk if nothing else is said", async () => {
  const { code, out, err } = await palisade([...ASK, ...SHORT, "--risk-worst", "0.05", "--explain", "--json"]);
  assert.equal(code, 0, err);
  const { policy, risk, certificate, cache, keep } = JSON.parse(out);
  assert.equal(policy.name, "defensive-risk");
  assert.deepEqual(risk, { kind: "worst", asked: 0.05, reached: null, passes: 1, worstCase: null });
  assert.ok(cache.evicted > 0);
  assert.equal(keep.tokensPerHead, Math.floor(cache.kept / (cache.perLayer.length * cache.perLayer[0].heads.length)));
  for (const { largestRisk } of certificate.layers) assert.ok(largestRisk < 0.05);
});

Deno.test("ask --explain prints a line per layer on standard error", async () => {
  const { code, err, out } = await palisade([...ASK, ...SHORT, "--keep", "40%", "--explain"]);
  assert.equal(code, 0, err);
  const lines = err.trim().split("\n");
  assert.match(lines[0], /judged by the last \d+ queries/);
  assert.match(lines[1], /layer +head +kept +largest risk +risk sum +evicted mass/);
  assert.match(lines[2], /^ +0 /);
  assert.doesNotMatch(out, /evicted mass/);
  for (const line of lines) assert.ok(line.length <= 100, line);
  const quiet = await palisade([...ASK, ...SHORT, "--keep", "40%", "--explain", "--quiet"]);
  assert.equal(quiet.err, "");
});

Deno.test("ask says on the terminal what the risk came to", async () => {
  const mean = await palisade([...ASK, ...SHORT, "--risk", "0.3"], { interactive: true });
  assert.match(mean.err, /^risk +0\.\d+ of at most 0\.3, at \d+ tokens per head/m);
  const worst = await palisade([...ASK, ...SHORT, "--risk-worst", "0.05"], { interactive: true });
  assert.match(worst.err, /^risk +evicted what is less important than 0\.05/m);
});

const REFUSED: [string, string[], number, RegExp][] = [
  ["--risk beside --keep", ["--risk", "0.1", "--keep", "20%"], 2, /--risk.*--keep/],
  ["--risk-worst beside --keep", ["--risk-worst", "0.1", "--keep", "20%"], 2, /--risk-worst.*--keep/],
  ["both risks", ["--risk", "0.1", "--risk-worst", "0.1"], 2, /--risk.*--risk-worst/],
  ["--risk beside --max-cache", ["--risk", "0.1", "--max-cache", "50"], 2, /--risk.*--max-cache/],
  ["a risk of 0", ["--risk", "0"], 2, /above 0 below 1/],
  ["a risk of 1", ["--risk", "1"], 2, /above 0 below 1/],
  ["a threshold that is no number", ["--risk-worst", "x"], 2, /above 0 below 1/],
  ["no bytes", ["--risk", "0.1", "--max-cache-bytes", "0"], 2, /from 1 to/],
  ["a threshold on other scores", ["--risk-worst", "0.1", "--policy", "snapkv"], 3, /snapkv.*defensive-risk/],
];

for (const [what, more, code, message] of REFUSED) {
  Deno.test(`ask refuses ${what} with exit code ${code}`, async () => {
    const result = await palisade([...ASK, ...more]);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.equal(result.out, "");
  });
}

Deno.test("ask refuses certificates and risks of a reading that evicts before the end is known", async () => {
  await writeFile(
    join(folder, "long.txt"),
    "She counted the stakes again and again before the gate was shut. ".repeat(130),
  );
  const long = [...ASK, "--context", join(folder, "long.txt"), "--positions", "rerotate", "--policy", "streaming-llm"];
  for (const [option, more] of [["--explain", ["--keep", "50"]], ["--risk", ["0.1"]]] as const) {
    const { code, err } = await palisade([...long, option, ...more]);
    assert.equal(code, 3, err);
    assert.match(err, option === "--risk" ? /--risk|trained/ : /--explain/);
  }
});
