import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import type { Page } from "playwright-core";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { writeGate } from "../../model/gate/file.ts";
import { loadModel } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { MemorySink } from "../../model/snapshot/bytes.ts";
import { modelHash } from "../../model/store/identity.ts";
import { bufferSource, currentRuntime, type Runtime, withFiles } from "../../runtime/mod.ts";
import { bundleByVite, bundleForBrowsers } from "../_helper/bundle.ts";
import { findChromium, launchChromium, NO_CHROMIUM } from "../_helper/chromium.ts";
import { gateInfo, randomGate } from "../_helper/gate.ts";
import { type Served, serveRanges } from "../_helper/range_server.ts";
import { skipped } from "../_helper/skip.ts";
import { splitGguf } from "../_helper/split_gguf.ts";

const PATH = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
const MODEL = readFileSync(PATH);
const TEXT = "The keeper counted seventeen stakes, and then she counted them again. ".repeat(20);
const QUESTION = "How many stakes?";
/** By which engine, and where the gate comes from. */
type Case = { readonly dense: "wasm" | "web"; readonly gate: boolean; readonly policy?: string };

/** What is compared. */
interface Told {
  readonly policy: string;
  readonly kept: number;
  readonly ids: readonly number[];
  readonly answer: string;
  readonly identity: string;
}

/** Scores of the model's heads, for `headkv`: two layers of two heads. */
const HEADS = "[[3, 1], [1, 5]]";

/** This runtime, in which a policy finds them by name. */
async function withHeads(): Promise<Runtime> {
  return withFiles(await currentRuntime(), { "heads.json": bufferSource(new TextEncoder().encode(HEADS)) });
}

/** The same in this runtime. */
async function told({ dense, gate, policy }: Case): Promise<Told> {
  const runtime = await withHeads();
  const given = gate ? { gate: bufferSource(await gateFile(), "model.gate") } : {};
  await using model = await loadModel(PATH, runtime, { dense, backend: "wasm", precision: "float32", ...given });
  using context = await openContext(model, TEXT, { keep: "30%", policy });
  const { ids, answer } = await context.ask(QUESTION, { maxTokens: 12 });
  const kept = context.cache.entries(), identity = await modelHash(PATH, runtime);
  return { policy: context.policy.name, kept, ids: [...ids], answer, identity };
}

/** Text, because the page's modules are not this program's. `open`: an expression for the model's source. */
function inPage(open: string, { dense, gate, policy }: Case): string {
  const options = { dense, backend: "wasm", precision: "float32" }, asked = { keep: "30%", policy };
  return `(async () => {
    const { blobSource, bufferSource, currentRuntime, loadModel, openContext, urlSource, withFiles } =
      await import("/palisade.js");
    const runtime = withFiles(await currentRuntime(), { "heads.json": blobSource(new Blob([${
    JSON.stringify(HEADS)
  }])) });
    const fetched = async (path) => await (await fetch(path)).blob();
    const gate = ${gate ? `blobSource(await fetched("/model.gate"), "model.gate")` : undefined};
    const model = await loadModel(${open}, runtime, { ...${JSON.stringify(options)}, gate });
    try {
      const context = await openContext(model, ${JSON.stringify(TEXT)}, ${JSON.stringify(asked)});
      const { ids, answer } = await context.ask(${JSON.stringify(QUESTION)}, { maxTokens: 12 });
      const kept = context.cache.entries(), identity = await model.identity();
      return { policy: context.policy.name, kept, ids: [...ids], answer, identity };
    } finally {
      await model[Symbol.asyncDispose]();
    }
  })()`;
}

/** A snapshot of this runtime, answered from in the page and saved there again. */
function snapshotsInPage(): string {
  const options = { dense: "wasm", backend: "wasm", precision: "float32" };
  return `(async () => {
    const { blobSource, currentRuntime, loadModel, MemorySink } = await import("/palisade.js");
    const fetched = async (path) => blobSource(await (await fetch(path)).blob());
    const model = await loadModel(await fetched("/model.gguf"), await currentRuntime(), ${JSON.stringify(options)});
    try {
      const context = await model.restore(await fetched("/book.palisade")), sink = new MemorySink();
      const { ids } = await context.ask(${JSON.stringify(QUESTION)}, { maxTokens: 12 });
      await context.save(sink);
      return { ids: [...ids], bytes: [...sink.bytes()] };
    } finally {
      await model[Symbol.asyncDispose]();
    }
  })()`;
}

/** A snapshot of the text, made in this runtime. */
async function snapshotBytes(): Promise<Uint8Array<ArrayBuffer>> {
  const options = { dense: "wasm", backend: "wasm", precision: "float32" } as const;
  await using model = await loadModel(PATH, await currentRuntime(), options);
  using context = await openContext(model, TEXT, { keep: "30%", policy: "layer-defensive" });
  const sink = new MemorySink();
  await context.save(sink);
  return sink.bytes();
}

/** The error's code that an expression rejects with in the page. */
function codeInPage(attempt: string): string {
  return `(async () => {
    const { currentRuntime, loadModel, urlSource } = await import("/palisade.js");
    const runtime = await currentRuntime();
    return await (${attempt}).then(() => "not refused", ({ code }) => code);
  })()`;
}

const TYPES: Record<string, string> = { ".js": "text/javascript", ".html": "text/html", ".wasm": "application/wasm" };

/** The gate of the tests' own model, as a file. */
async function gateFile(): Promise<Uint8Array<ArrayBuffer>> {
  const runtime = await currentRuntime();
  await using file = await openGguf(await runtime.openFile(PATH));
  const config = await configOf(file), info = gateInfo(config, await modelHash(PATH, runtime));
  return writeGate(info, randomGate(config));
}

/** A page of a server that has the bundle and the model, whole and in two parts. */
async function withPage(
  bundle: (folder: string) => Promise<void>,
  body: (page: Page, requests: readonly string[]) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "palisade-page-"));
  await bundle(folder);
  const [first, second] = splitGguf(MODEL, 2);
  const made: Record<string, Served> = {
    "/": { bytes: new TextEncoder().encode("<!doctype html><title>palisade</title>"), type: "text/html" },
    "/model.gguf": { bytes: MODEL, etag: '"1"' },
    "/first": { bytes: first },
    "/second": { bytes: second },
    "/model.gate": { bytes: await gateFile() },
    "/book.palisade": { bytes: await snapshotBytes() },
  };
  const find = (path: string): Served | undefined => {
    const file = join(folder, normalize(path));
    if (made[path] || !existsSync(file)) return made[path];
    return { bytes: readFileSync(file), type: TYPES[extname(file)] };
  };
  const browser = await launchChromium();
  try {
    await using server = await serveRanges(find);
    const page = await browser.newPage();
    await page.goto(server.url);
    await body(page, server.requests);
  } finally {
    await browser.close();
    rmSync(folder, { recursive: true });
  }
}

async function bundleByEsbuild(folder: string): Promise<void> {
  const inputs = await bundleForBrowsers(folder);
  assert.ok(!inputs.some((name) => /dist\/runtime\/(node|deno|bun)/.test(name) && !name.startsWith("(disabled)")));
}

const IN_CHROMIUM = "a page in Chromium loads a model from a Blob, a URL or parts, evicts and answers as Deno does";
if (findChromium() === undefined) skipped(IN_CHROMIUM, NO_CHROMIUM, "file");
else {
  Deno.test({
    name: IN_CHROMIUM,
    // The drivers of browser and bundler keep timers and pipes of their own.
    sanitizeOps: false,
    sanitizeResources: false,
    async fn(t) {
      await withPage(bundleByEsbuild, async (page, requests) => {
        const plain: Case = { dense: "wasm", gate: false, policy: "layer-defensive" };
        const expected = await told(plain);
        assert.ok(expected.ids.length > 4);
        await t.step("from a Blob", async () => {
          assert.deepEqual(await page.evaluate(inPage(`blobSource(await fetched("/model.gguf"))`, plain)), expected);
        });
        await t.step("from a URL, of which only parts are fetched", async () => {
          const before = requests.length;
          assert.deepEqual(await page.evaluate(inPage(`await urlSource("/model.gguf")`, plain)), expected);
          const asked = requests.slice(before).filter((request) => request.includes("/model.gguf"));
          assert.ok(asked.length > 1 && asked.every((request) => request.includes("bytes=")), asked.join("\n"));
        });
        await t.step("and restores a snapshot that was saved here, as one saved there is restored here", async () => {
          const { backend, dense } = { backend: "wasm", dense: "wasm" } as const, runtime = await currentRuntime();
          await using model = await loadModel(PATH, runtime, { dense, backend, precision: "float32" });
          const saved = await page.evaluate(snapshotsInPage()) as { ids: number[]; bytes: number[] };
          const bytes = Uint8Array.from(saved.bytes);
          using restored = await model.restore(bufferSource(bytes));
          assert.deepEqual((await restored.ask(QUESTION, { maxTokens: 12 })).ids, saved.ids);
          assert.deepEqual(saved.ids, expected.ids, "answered in the page from the snapshot of this runtime");
        });
        await t.step("from two parts, in any order", async () => {
          const parts = `[await urlSource("/second"), bufferSource(await (await fetched("/first")).arrayBuffer())]`;
          const { identity, ...others } = await page.evaluate(inPage(parts, plain)) as Told;
          assert.deepEqual({ ...others, identity: expected.identity }, expected);
          assert.notEqual(identity, expected.identity, "the parts' bytes are others");
        });
        await t.step("with a gate's bytes, which the default policy then takes", async () => {
          const gated: Case = { dense: "wasm", gate: true };
          const here = await told(gated);
          assert.equal(here.policy, "gate");
          assert.deepEqual(await page.evaluate(inPage(`blobSource(await fetched("/model.gguf"))`, gated)), here);
        });
        await t.step("without one, by the default policy that needs none", async () => {
          const left: Case = { dense: "wasm", gate: false };
          const here = await told(left);
          assert.equal(here.policy, "self-gate");
          assert.deepEqual(await page.evaluate(inPage(`blobSource(await fetched("/model.gguf"))`, left)), here);
        });
        await t.step("with a file that a policy names", async () => {
          const named: Case = { ...plain, policy: "headkv(file=heads.json)" };
          assert.deepEqual(await page.evaluate(inPage(`await urlSource("/model.gguf")`, named)), await told(named));
        });
        await t.step("on onnxruntime-web", async () => {
          const ort: Case = { ...plain, dense: "web" };
          assert.deepEqual(
            await page.evaluate(inPage(`blobSource(await fetched("/model.gguf"))`, ort)),
            await told(ort),
          );
        });
        await t.step("and refuses a path and what is not there by type", async () => {
          assert.equal(await page.evaluate(codeInPage(`loadModel("a.gguf", runtime)`)), "runtime.no-files");
          assert.equal(await page.evaluate(codeInPage(`urlSource("/nothing.gguf")`)), "url.status");
        });
      });
    },
  });
  Deno.test({
    name: "a page that Vite has bundled does the same",
    sanitizeOps: false,
    sanitizeResources: false,
    async fn() {
      await withPage(bundleByVite, async (page) => {
        for (const dense of ["wasm", "web"] as const) {
          const plain: Case = { dense, gate: false, policy: "layer-defensive" };
          assert.deepEqual(await page.evaluate(inPage(`await urlSource("/model.gguf")`, plain)), await told(plain));
        }
      });
    },
  });
}
