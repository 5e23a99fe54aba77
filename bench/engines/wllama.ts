/**
 * wllama, llama.cpp as WebAssembly, in a page of a headless Chromium, as one of the engines of bench/engines/engine.ts.
 * Reads one JSON request a line, answers each with one line. Full cache.
 *
 *     deno run -A bench/engines/wllama.ts MODEL.gguf CONTEXT f16|f32
 */
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import process from "node:process";
import { createInterface } from "node:readline";
import { findChromium, launchChromium, NO_CHROMIUM } from "../../tests/_helper/chromium.ts";
import { benchPath, type Reply, type Request } from "./engine.ts";

const [model, context, type] = process.argv.slice(2);
const PACKAGE = benchPath("peers/node_modules/@wllama/wllama/");
const FILES: Record<string, [path: string, mediaType: string]> = {
  "/page.mjs": [benchPath("engines/wllama_page.mjs"), "text/javascript"],
  "/wllama/index.js": [`${PACKAGE}esm/index.js`, "text/javascript"],
  "/wllama/single-thread/wllama.wasm": [`${PACKAGE}esm/single-thread/wllama.wasm`, "application/wasm"],
  "/model.gguf": [model, "application/octet-stream"],
};

function answer(reply: Reply | { readonly detail: string } | { readonly error: string }): void {
  console.log(JSON.stringify(reply));
}

const missing = !findChromium() ? NO_CHROMIUM : !existsSync(PACKAGE) ? "its package is not in bench/peers" : undefined;
if (missing !== undefined) {
  answer({ error: missing });
  process.exit(0);
}

const server = createServer((request, response) => {
  const [path, mediaType] = FILES[request.url!] ?? [];
  if (request.url === "/") {
    response.setHeader("content-type", "text/html").end("<script type=module src=page.mjs></script>");
  } else if (path === undefined) response.writeHead(404).end();
  else response.setHeader("content-type", mediaType!).end(readFileSync(path));
});
await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
const browser = await launchChromium();
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
await page.waitForFunction("globalThis.decode");
await page.evaluate(`load(${context}, "${type}")`);

/** Processor milliseconds that all processes of the browser have used. */
const session = await browser.newBrowserCDPSession();
async function processor(): Promise<number> {
  const { processInfo } = await session.send("SystemInfo.getProcessInfo");
  return processInfo.reduce((sum, { cpuTime }) => sum + cpuTime * 1000, 0);
}

const { version } = JSON.parse(readFileSync(`${PACKAGE}package.json`, "utf8"));
answer({ detail: `wllama ${version} in Chromium ${browser.version()}, full cache ${type}, 1 thread` });
for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line) as Request;
  const before = await processor();
  if (request.what === "prefill") {
    const ms = await page.evaluate<number>(`prefill(${JSON.stringify(request.ids)})`);
    answer({ ms, cpu: await processor() - before });
  } else {
    const ms = await page.evaluate<number[]>(`decode(${request.id}, ${request.steps})`);
    answer({ ms, cpu: (await processor() - before) / request.steps });
  }
}
await browser.close();
process.exit(0);
