/** Stores of a page, in a real browser: the contract, what stays after a reload, and what is left behind. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import type { Page } from "playwright-core";
import { indexedDbStore } from "../../../model/snapshot/stores/indexed_db.ts";
import { hasOpfs, opfsStore } from "../../../model/snapshot/stores/opfs.ts";
import { findChromium, launchChromium, NO_CHROMIUM } from "../../_helper/chromium.ts";
import { serveRanges } from "../../_helper/range_server.ts";
import { skipped } from "../../_helper/skip.ts";
import { STORE_CONTRACT } from "../../_helper/store_contract.ts";

const ENTRY = fileURLToPath(new URL("../../_helper/store_contract_page.ts", import.meta.url));

async function script(): Promise<Uint8Array<ArrayBuffer>> {
  const external = ["ioredis", "@aws-sdk/client-s3", "node:*"];
  const { outputFiles } = await build({ entryPoints: [ENTRY], bundle: true, format: "esm", write: false, external });
  return outputFiles[0].contents.slice();
}

async function withPage(body: (page: Page) => Promise<void>): Promise<void> {
  const html = new TextEncoder().encode(
    `<!doctype html><title>stores</title><script type="module" src="/page.js"></script>`,
  );
  const files = {
    "/": { bytes: html, type: "text/html" },
    "/page.js": { bytes: await script(), type: "text/javascript" },
  };
  const browser = await launchChromium();
  try {
    await using server = await serveRanges((path) => files[path as keyof typeof files]);
    const page = await browser.newPage();
    await page.goto(server.url);
    await ready(page);
    await body(page);
  } finally {
    await browser.close();
  }
}

async function ready(page: Page): Promise<void> {
  await page.waitForFunction("globalThis.checkStore !== undefined");
}

const IN_CHROMIUM =
  "a page in Chromium keeps snapshots in its own files and in IndexedDB, by the contract of all stores";
if (findChromium() === undefined) skipped(IN_CHROMIUM, NO_CHROMIUM, "file");
else {
  Deno.test({
    name: IN_CHROMIUM,
    // The drivers of browser and bundler keep timers and pipes of their own.
    sanitizeOps: false,
    sanitizeResources: false,
    async fn(t) {
      await withPage(async (page) => {
        for (const kind of ["opfs", "indexedDb"]) {
          const outcomes = await page.evaluate(`checkStore("${kind}")`) as [string, string | null | undefined][];
          assert.deepEqual(outcomes.map(([what]) => what), STORE_CONTRACT.map(({ what }) => what));
          for (const [what, failure] of outcomes) {
            await t.step(`${kind} ${what}`, () => assert.equal(failure ?? "", ""));
          }
        }
        await t.step("what was put is there after a reload, and the page's own choice finds it", async () => {
          await page.evaluate(`stores.page().then((store) => store.put("kept", new Uint8Array([1, 2, 3])))`);
          await page.reload();
          await ready(page);
          const found = `stores.opfs().then((store) => store.get("kept")).then((bytes) => [...bytes])`;
          assert.deepEqual(await page.evaluate(found), [1, 2, 3]);
        });
        await t.step("its own files hold no more than what counts, but for puts that may still go on", async () => {
          const left = await page.evaluate(`(async () => {
            const store = await stores.opfs("tidy");
            for (const size of [10, 20, 30]) await store.put("a", new Uint8Array(size));
            await store.put("b", (async function* () { yield new Uint8Array(5); throw new Error("enough"); })()).catch(() => {});
            await store.put("c", new Uint8Array(1));
            await store.delete("c");
            const root = await navigator.storage.getDirectory(), folder = await root.getDirectoryHandle("tidy");
            const names = [];
            for await (const name of folder.keys()) names.push(name.replace(/~.*/, "~"));
            return names.sort();
          })()`);
          assert.deepEqual(left, ["a", "a~"]);
        });
        await t.step("a version whose file is lost is refused by type", async () => {
          const code = await page.evaluate(`(async () => {
            const store = await stores.opfs("lost"), root = await navigator.storage.getDirectory();
            await store.put("a", new Uint8Array(3));
            const folder = await root.getDirectoryHandle("lost"), names = [];
            for await (const name of folder.keys()) if (name.includes("~")) names.push(name);
            for (const name of names) await folder.removeEntry(name);
            return [await store.get("a").catch((error) => error.code), await store.head("a"), (await store.list()).length];
          })()`);
          assert.deepEqual(code, ["store.failed", undefined, 0]);
        });
      });
    },
  });
}

Deno.test("where there is no such place, it is told by type", async () => {
  assert.equal(hasOpfs(), false);
  await assert.rejects(opfsStore(), { code: "store.no-opfs" });
  await assert.rejects(indexedDbStore(), { code: "store.no-indexed-db" });
});
