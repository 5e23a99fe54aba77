/**
 * The backend's suite and some whole models on the other emulated feature sets: SwiftShader in Deno has neither 16-bit floats nor subgroups, in
 * a page of Chromium and in Node's Dawn it has subgroups. (The device of this process, lavapipe, has 16-bit floats.) No
 * emulator has both: the page stands in for 16-bit floats.
 */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { runChild } from "../../tools/child.ts";
import { ROOT } from "../../tools/repository.ts";
import { findChromium, launchChromium, NO_CHROMIUM } from "../_helper/chromium.ts";
import { readGolden } from "../_helper/golden.ts";
import type { GpuOutcome } from "../_helper/gpu_suite.ts";
import { serveRanges } from "../_helper/range_server.ts";
import { skipped } from "../_helper/skip.ts";
import { NO_SWIFTSHADER, SWIFTSHADER, swiftShaderOnly } from "../_helper/swiftshader.ts";

function helper(name: string): string {
  return fileURLToPath(new URL(`../_helper/${name}`, import.meta.url));
}

/** Every case passed, on an emulated adapter with these features, and nothing is left but the device's own buffers. */
function assertOutcome({ cases, emulated, features, held }: GpuOutcome, want: GpuOutcome["features"]): void {
  assert.deepEqual(cases.filter(([, failure]) => failure !== ""), []);
  assert.ok(cases.length >= 15, `${cases.length} cases ran`);
  assert.deepEqual({ emulated, features }, { emulated: true, features: want });
  assert.ok(held < 300_000, `${held} bytes are held though nothing is`);
}

const IN_DENO = "webgpu: the suite on SwiftShader, without 16-bit floats and subgroups";
if (SWIFTSHADER === undefined) skipped(IN_DENO, NO_SWIFTSHADER);
else {
  Deno.test(IN_DENO, async () => {
    const args = ["run", "-A", "--no-check", "--unstable-webgpu", helper("gpu_suite_process.ts")];
    const options = { cwd: ROOT, env: swiftShaderOnly(), timeout: 900 };
    const { code, stdout, stderr } = await runChild(process.execPath, args, options);
    assert.equal(code, 0, stderr);
    assertOutcome(JSON.parse(/^outcome (.*)$/m.exec(stdout)![1]), { f16: false, subgroups: false });
  });
}

/** The suite as one script, what it asks of Node replaced. */
async function pageScript(): Promise<Uint8Array<ArrayBuffer>> {
  const stand = helper("page_node.ts");
  const { outputFiles } = await build({
    entryPoints: [helper("gpu_suite_page.ts")],
    bundle: true,
    format: "esm",
    write: false,
    alias: { "node:assert/strict": stand, "node:process": stand },
  });
  return outputFiles[0].contents.slice();
}

const FLAGS = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader"];

/** The model whose logits a page computes: norms of heads, and products of four types. */
const MODEL = "qwen3-plain";

const IN_CHROMIUM = "webgpu: the suite in a page of Chromium, with subgroups";
if (findChromium() === undefined) skipped(IN_CHROMIUM, NO_CHROMIUM);
else {
  Deno.test({
    name: IN_CHROMIUM,
    // The drivers of browser and bundler keep timers and pipes of their own.
    sanitizeOps: false,
    sanitizeResources: false,
    async fn() {
      const html = `<!doctype html><title>gpu</title><script type="module" src="/page.js"></script>`;
      const files = new Map<string, { bytes: Uint8Array; type?: string }>([
        ["/", { bytes: new TextEncoder().encode(html), type: "text/html" }],
        ["/page.js", { bytes: await pageScript(), type: "text/javascript" }],
      ]);
      for (const name of ["tiny-L97.safetensors", "tiny-L97.kept.json"]) {
        files.set(`/${name}`, { bytes: await readGolden(name) });
      }
      for (const name of [`${MODEL}.gguf`, `${MODEL}.logits.json`]) {
        const bytes = await readFile(fileURLToPath(new URL(`../data/models/${name}`, import.meta.url)));
        files.set(`/${name}`, { bytes: new Uint8Array(bytes) });
      }
      const browser = await launchChromium(FLAGS);
      try {
        await using server = await serveRanges((path) => files.get(path));
        const page = await browser.newPage();
        await page.goto(server.url);
        await page.waitForFunction("globalThis.runGpuSuite !== undefined");
        const outcome = await page.evaluate(`runGpuSuite(["${MODEL}"])`) as GpuOutcome;
        assertOutcome(outcome, { f16: false, subgroups: true });
        assert.ok(outcome.cases.some(([name]) => /16-bit floats stood in for/.test(name)), "both features together");
      } finally {
        await browser.close();
      }
    },
  });
}
