/** Models by reference, OWNER/REPOSITORY[:QUANT], from a hub that a test plays. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { PalisadeError } from "../../core/errors.ts";
import { chooseFiles, type HubFile, hubReference } from "../../model/store/hub_reference.ts";
import {
  HUB_SUGGESTIONS,
  listModels,
  modelPath,
  pullModel,
  removeModel,
  resolveModel,
} from "../../model/store/store.ts";
import { NO_HUB, place, seededBytes } from "../_helper/store.ts";

const SHA = "0123456789abcdef0123456789abcdef01234567";

async function refusal(promise: Promise<unknown>): Promise<PalisadeError> {
  const error = await promise.then(() => undefined, (reason) => reason);
  assert.ok(error instanceof PalisadeError, `${error}`);
  return error;
}

/** A hub with one repository, `someone/Tiny-GGUF`; `asked` are the paths of requests, in order. */
function hubWith(files: Readonly<Record<string, Uint8Array<ArrayBuffer>>>) {
  const asked: string[] = [];
  const stop = new AbortController();
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", signal: stop.signal, onListen() {} }, (request) => {
    const { pathname } = new URL(request.url);
    asked.push(pathname);
    if (pathname.startsWith("/api/models/someone/Tiny-GGUF/tree/")) {
      return Response.json(
        Object.entries(files).map(([path, bytes]) => {
          const oid = createHash("sha256").update(bytes).digest("hex");
          return {
            type: "file",
            path,
            size: bytes.length,
            oid: "1",
            lfs: { oid, size: bytes.length, pointerSize: 130 },
          };
        }),
      );
    }
    if (pathname.startsWith("/api/models/someone/Tiny-GGUF")) {
      return Response.json({ _id: "1", id: "someone/Tiny-GGUF", sha: SHA, likes: 0, downloads: 0 });
    }
    const bytes = files[pathname.replace(`/someone/Tiny-GGUF/resolve/${SHA}/`, "")];
    if (!bytes) return Response.json({ error: "Repository not found" }, { status: 404 });
    if (request.headers.get("Range") === "bytes=0-0") {
      const headers = { "Content-Range": `bytes 0-0/${bytes.length}`, ETag: '"etag"' };
      return new Response(bytes.slice(0, 1), { status: 206, headers });
    }
    return new Response(bytes);
  });
  return {
    url: `http://127.0.0.1:${server.addr.port}`,
    asked,
    [Symbol.asyncDispose]: async () => (stop.abort(), await server.finished),
  };
}

Deno.test("hubReference() knows OWNER/REPOSITORY[:QUANT] by its form and leaves paths alone", () => {
  const known = ["unsloth/Qwen3-0.6B-GGUF", "a/b:Q4_K_M", "a/b:file-Q8_0.gguf"];
  const paths = ["a.gguf", "a/b.gguf", "./a/b", "/a/b", "a/b/c", "../a", "name", "a/b:", "a:Q4", "a/b:c d", "~/b", ""];
  for (const text of known) assert.equal(hubReference(text)?.text, text);
  for (const text of paths) assert.equal(hubReference(text), undefined, text);
  assert.deepEqual(hubReference("a/b:Q8_0"), { text: "a/b:Q8_0", repository: "a/b", quant: "Q8_0" });
});

const file = (path: string): HubFile => ({ path, size: 1, sha256: "0".repeat(64) });
const REPOSITORY = [
  "README.md",
  "Tiny-1B-Q8_0.gguf",
  "Tiny-1B-q4_k_m.gguf",
  "Tiny-1B-IQ4_XS.gguf",
  "mmproj-Tiny-F16.gguf",
  "F16/Tiny-1B-F16-00002-of-00002.gguf",
  "F16/Tiny-1B-F16-00001-of-00002.gguf",
].map(file);

Deno.test("chooseFiles() takes the named quantisation, all parts in order, and Q4_K_M by itself", () => {
  const paths = (text: string, files = REPOSITORY) => chooseFiles(hubReference(text)!, files).map(({ path }) => path);
  assert.deepEqual(paths("a/b"), ["Tiny-1B-q4_k_m.gguf"]);
  assert.deepEqual(paths("a/b:iq4_xs"), ["Tiny-1B-IQ4_XS.gguf"]);
  assert.deepEqual(paths("a/b:Tiny-1B-Q8_0.gguf"), ["Tiny-1B-Q8_0.gguf"]);
  assert.deepEqual(paths("a/b:F16"), ["F16/Tiny-1B-F16-00001-of-00002.gguf", "F16/Tiny-1B-F16-00002-of-00002.gguf"]);
  assert.deepEqual(paths("a/b", [file("only.gguf")]), ["only.gguf"]);
});

Deno.test("chooseFiles() refuses with what there is", () => {
  const problem = (text: string, files: readonly HubFile[]) => {
    const error = (() => {
      try {
        chooseFiles(hubReference(text)!, files);
      } catch (reason) {
        return reason as PalisadeError;
      }
    })();
    return `${error?.code}: ${error?.message}`;
  };
  assert.match(problem("a/b", [file("README.md")]), /^hub\.no-gguf: .*no GGUF/);
  assert.match(problem("a/b:Q4_K_S", REPOSITORY), /^hub\.quant: .*did you mean Q4_K_M\?/);
  assert.match(problem("a/b:nothing", REPOSITORY), /there is Q8_0, Q4_K_M, IQ4_XS, F16$/);
  assert.match(problem("a/b:F16", REPOSITORY.slice(0, 6)), /1 of its 2 parts/);
  assert.match(problem("a/b", [file("x.gguf"), file("y.gguf")]), /name one of x, y after a colon/);
  assert.match(problem("a/b:Q8_0", [file("x-Q8_0.gguf"), file("y-Q8_0.gguf")]), /several files are Q8_0: .*x-Q8_0/);
});

Deno.test("a reference is fetched once, checked, found offline, listed and removed", async () => {
  const bytes = seededBytes(7, 40_000);
  await using hub = hubWith({ "tiny-Q4_K_M.gguf": bytes, "tiny-Q8_0.gguf": seededBytes(8, 100) });
  await using here = await place({ HF_ENDPOINT: hub.url });
  const name = "someone/Tiny-GGUF";
  const never = await refusal(resolveModel(name, here.runtime, { models: [], offline: true }));
  assert.deepEqual([never.kind, never.code], ["resources", "model.offline"]);
  const path = await pullModel(name, here.runtime, { models: [] });
  assert.deepEqual(await Deno.readFile(path), bytes);
  const asked = hub.asked.length;
  assert.equal(await resolveModel(name, here.runtime, { models: [], offline: true }), path);
  assert.equal(await modelPath(name, here.runtime, { models: [] }), path);
  assert.equal(hub.asked.length, asked, "nobody is asked again");
  const listed = await listModels(here.runtime, { models: [] });
  assert.deepEqual(listed.map(({ model, verified }) => [model.name, verified]), [[name, true]]);
  assert.equal(await removeModel(name, here.runtime, { models: [] }), bytes.length);
  assert.deepEqual(await listModels(here.runtime, { models: [] }), []);
});

Deno.test("a split model is fetched part by part, and its first part is the path", async () => {
  const parts = [1, 2].map((n) => `big-Q8_0-0000${n}-of-00002.gguf`);
  await using hub = hubWith(Object.fromEntries(parts.map((part, i) => [part, seededBytes(i, 5_000)])));
  await using here = await place({ HF_ENDPOINT: hub.url });
  const path = await pullModel("someone/Tiny-GGUF:Q8_0", here.runtime, { models: [] });
  assert.ok(path.endsWith(`someone--Tiny-GGUF--${parts[0]}`));
  assert.equal((await listModels(here.runtime, { models: [] })).filter(({ verified }) => verified).length, 2);
});

Deno.test("a reference that leads nowhere is refused with the reason", async () => {
  await using hub = hubWith({});
  await using here = await place({ HF_ENDPOINT: hub.url });
  assert.match((await refusal(pullModel("no/body", here.runtime, { models: [] }))).message, /look up no\/body/);
  await using alone = await place({ HF_ENDPOINT: NO_HUB });
  const error = await refusal(pullModel("no/body:Q4_0", alone.runtime, { models: [], connectMs: 500 }));
  assert.deepEqual([error.kind, error.code, error.where], ["resources", "model.unreachable", "no/body:Q4_0"]);
  assert.equal(await resolveModel("some/where.gguf", alone.runtime, { models: [] }), "some/where.gguf");
});

Deno.test("a damaged or hostile note is as none", async () => {
  await using hub = hubWith({ "tiny-Q8_0.gguf": seededBytes(8, 100) });
  await using here = await place({ HF_ENDPOINT: hub.url });
  await pullModel("someone/Tiny-GGUF", here.runtime, { models: [] });
  const note = `${here.models}/hub/someone--Tiny-GGUF.json`, good = await Deno.readTextFile(note);
  for (
    const bad of ["", "{", "[]", '{"name":"x","files":[]}', good.replace(/"file": ".*"/, '"file": "../../x.gguf"')]
  ) {
    await Deno.writeTextFile(note, bad);
    assert.deepEqual(await listModels(here.runtime, { models: [] }), [], bad);
  }
});

Deno.test("every suggestion of the hub is a reference with a quantisation", () => {
  for (const { name } of HUB_SUGGESTIONS) assert.ok(hubReference(name)?.quant, name);
});
