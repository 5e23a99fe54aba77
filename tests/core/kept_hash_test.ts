import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, extname, join, normalize } from "node:path";
import process from "node:process";
import ts from "typescript";
import { findBun } from "../../tools/bun.ts";
import { runChild } from "../../tools/child.ts";
import { ROOT } from "../../tools/repository.ts";
import { findChromium, launchChromium, NO_CHROMIUM } from "../_helper/chromium.ts";
import { skipped } from "../_helper/skip.ts";

const SCRIPT = "tools/kept_hash.ts";
const GOLDEN = join(ROOT, "tests/data/golden");

interface Hashes {
  readonly core: string;
  readonly ts: string;
  /** By the simd128 kernels, whose last bits are not those of plain loops. */
  readonly wasm: string;
}

/** The lines of `tools/kept_hash.ts` in one runtime. */
async function hashes(command: string, args: readonly string[]): Promise<Hashes> {
  const { code, stdout, stderr } = await runChild(command, [...args, GOLDEN], { cwd: ROOT, timeout: 600 });
  assert.equal(code, 0, stderr);
  const found = /^core ([0-9a-f]{64})\nts {3}([0-9a-f]{64})\nwasm ([0-9a-f]{64})\n$/.exec(stdout);
  assert.ok(found, stdout);
  return { core: found[1], ts: found[2], wasm: found[3] };
}

/** The script and all it imports as JavaScript, for runtimes that can't read TypeScript; returns the folder. */
function compiled(): string {
  const folder = mkdtempSync(join(tmpdir(), "palisade-hash-"));
  const inFolder = (path: string) =>
    readdirSync(join(ROOT, path), { recursive: true }).map(String).filter((name) => name.endsWith(".ts"))
      .map((name) => join(path, name));
  const files = ["safetensors.ts", "safetensors_header.ts", "strict_json.ts"].map((name) => `model/file/${name}`);
  const runtime = ["features", "name", "wide_vectors"].map((name) => `runtime/${name}.ts`);
  const others = [...files, "model/file/gguf/float16.ts", ...runtime];
  const rooms = ["core", "wasm"].flatMap(inFolder);
  const sources = [...rooms, ...others, SCRIPT];
  const compilerOptions = {
    module: ts.ModuleKind.ESNext,
    target: ts.ScriptTarget.ES2023,
    rewriteRelativeImportExtensions: true,
  };
  for (
    const source of [
      ...sources,
      ...["kept_hash", "safetensors", "tiny"].map((name) => `tests/_helper/${name}.ts`),
    ]
  ) {
    const target = join(folder, source.replace(/\.ts$/, ".js"));
    mkdirSync(dirname(target), { recursive: true });
    const text = readFileSync(join(ROOT, source), "utf8");
    writeFileSync(target, ts.transpileModule(text, { compilerOptions, fileName: source }).outputText);
  }
  cpSync(join(ROOT, "package.json"), join(folder, "package.json"));
  return folder;
}

let inDeno: ReturnType<typeof hashes> | undefined;
const here = () => inDeno ??= hashes(process.execPath, ["run", "-A", SCRIPT]);
const bun = await findBun();
const node = (await runChild("node", ["--version"], { timeout: 30 })).code === 0;

Deno.test("the ts backend keeps what core keeps, to the score's last bit", async () => {
  const { core, ts } = await here();
  assert.equal(ts, core);
});

if (!bun) skipped("Bun keeps what Deno keeps, to the score's last bit", "no Bun in node_modules or on PATH", "device");
else {
  Deno.test("Bun keeps what Deno keeps, to the score's last bit", async () => {
    assert.deepEqual(await hashes(bun, [SCRIPT]), await here());
  });
}

if (!node) skipped("Node keeps what Deno keeps, to the score's last bit", "no Node on PATH", "device");
else {
  Deno.test("Node keeps what Deno keeps, to the score's last bit", async () => {
    const folder = compiled();
    try {
      assert.deepEqual(await hashes("node", [join(folder, "tools/kept_hash.js")]), await here());
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
}

/** Runs the helper in a page served from the compiled folder, golden files beside it. */
async function hashesInChromium(folder: string): Promise<Hashes> {
  cpSync(GOLDEN, join(folder, "golden"), { recursive: true });
  const types: Record<string, string> = { ".js": "text/javascript", ".html": "text/html" };
  writeFileSync(join(folder, "page.html"), "<!doctype html><title>kept sets</title>");
  const server = createServer((request, response) => {
    const path = join(folder, normalize(new URL(request.url!, "http://localhost").pathname));
    if (!existsSync(path)) return void response.writeHead(404).end();
    response.writeHead(200, { "content-type": types[extname(path)] ?? "application/octet-stream" });
    response.end(readFileSync(path));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const browser = await launchChromium();
  try {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/page.html`);
    return await page.evaluate(IN_PAGE) as Hashes;
  } finally {
    await browser.close();
    await new Promise((resolve) => server.close(resolve));
  }
}

/** Text, because the page's modules are not this program's. */
const IN_PAGE = `(async () => {
  const { keptHashes } = await import("/tests/_helper/kept_hash.js");
  const { createWasmBackend } = await import("/wasm/backend.js");
  const read = async (name) => new Uint8Array(await (await fetch("/golden/" + name)).arrayBuffer());
  const { core, backend: ts } = await keptHashes(read);
  const { backend: wasm } = await keptHashes(read, await createWasmBackend({ simd: "simd128" }));
  return { core, ts, wasm };
})()`;

const IN_CHROMIUM = "Chromium keeps what Deno keeps, to the score's last bit";
if (findChromium() === undefined) skipped(IN_CHROMIUM, NO_CHROMIUM, "file");
else {
  Deno.test({
    name: IN_CHROMIUM,
    // The driver keeps timers and pipes of its own.
    sanitizeOps: false,
    sanitizeResources: false,
    async fn() {
      const folder = compiled();
      try {
        assert.deepEqual(await hashesInChromium(folder), await here());
      } finally {
        rmSync(folder, { recursive: true });
      }
    },
  });
}
