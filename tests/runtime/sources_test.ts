import assert from "node:assert/strict";
import type { ServerResponse } from "node:http";
import { currentRuntime } from "../../runtime/mod.ts";
import { browserRuntime } from "../../runtime/browser.ts";
import { hostOf } from "../../runtime/host.ts";
import { blobSource, bufferSource, urlSource, withFiles } from "../../runtime/sources.ts";
import { type RangeServer, type Served, serveRanges } from "../_helper/range_server.ts";

const BYTES = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);

/** A server of one file whose answers after the first are `next`'s, where it says so. */
async function server(files: () => Served | undefined, spoil?: (response: ServerResponse) => boolean) {
  let count = 0;
  return await serveRanges(files, (_, response) => ++count > 1 && (spoil?.(response) ?? false));
}

/** The code and kind of a refusal. */
async function refusal(promise: Promise<unknown>): Promise<string> {
  return await promise.then(() => "not refused", ({ kind, code }) => `${kind} ${code}`);
}

Deno.test("blobSource() and bufferSource() read exact ranges and refuse others", async () => {
  const bytes = Uint8Array.from([0, 1, 2, 3, 4]);
  for (const source of [blobSource(new Blob([bytes])), bufferSource(bytes), bufferSource(bytes.buffer, "named")]) {
    assert.equal(source.size, 5);
    assert.deepEqual(await source.read(1, 3), Uint8Array.from([1, 2, 3]));
    assert.deepEqual(await source.read(5, 0), new Uint8Array(0));
    for (const [offset, length] of [[-1, 1], [4, 2], [0.5, 1], [0, NaN]]) {
      await assert.rejects(source.read(offset, length), RangeError);
    }
    await source.close();
  }
});

Deno.test("blobSource() is called like the picked file, and says when that can't be read any more", async () => {
  const file = new File([BYTES], "picked.gguf");
  assert.equal(blobSource(file).name, "picked.gguf");
  const gone = Object.assign(new Blob([BYTES]), { slice: () => ({ arrayBuffer: () => Promise.reject(new Error()) }) });
  assert.equal(await refusal(blobSource(gone as unknown as Blob).read(0, 1)), "input file.changed");
});

Deno.test("urlSource() fetches what is asked for and nothing else", async () => {
  await using here = await serveRanges(() => ({ bytes: BYTES, etag: '"1"' }));
  const source = await urlSource(`${here.url}/x`);
  assert.deepEqual([source.size, source.name], [1000, `${here.url}/x`]);
  assert.deepEqual(await source.read(10, 300), BYTES.slice(10, 310));
  assert.deepEqual(await source.read(0, 1000), BYTES);
  assert.deepEqual(await source.read(1000, 0), new Uint8Array(0));
  await assert.rejects(source.read(999, 2), RangeError);
  assert.deepEqual(here.requests, ["GET /x bytes=0-0", "GET /x bytes=10-309", "GET /x bytes=0-999"]);
  await source.close();
  await assert.rejects(source.read(0, 1), { name: "AbortError" });
});

Deno.test("urlSource() opens an empty file", async () => {
  await using here = await serveRanges(() => ({ bytes: new Uint8Array(0) }));
  const source = await urlSource(new URL(here.url));
  assert.deepEqual([source.size, await source.read(0, 0)], [0, new Uint8Array(0)]);
});

Deno.test("urlSource() refuses addresses and servers that it can't read from", async () => {
  const answers = (status: number, headers: Record<string, string> = {}, body = "x") =>
    serveRanges(() => undefined, (_, response) => (response.writeHead(status, headers).end(body), true));
  const cases: [server: Promise<RangeServer>, expected: string][] = [
    [serveRanges(() => undefined), "input url.status"],
    [answers(500), "input url.status"],
    [answers(200), "input url.no-ranges"],
    [answers(206), "input url.no-ranges"],
    [answers(206, { "content-range": "bytes 0-0/*" }), "input url.no-ranges"],
    [answers(206, { "content-range": `bytes 0-0/${"9".repeat(30)}` }), "input url.no-ranges"],
    [answers(416, { "content-range": "bytes */5" }), "input url.status"],
    [serveRanges(() => undefined, (request) => (request.destroy(), true)), "resources url.unreachable"],
  ];
  for (const [starting, expected] of cases) {
    await using here = await starting;
    assert.equal(await refusal(urlSource(here.url)), expected);
  }
  for (const wrong of ["file:///etc/hosts", "data:,x", "no url"]) {
    assert.equal(await refusal(urlSource(wrong)), "input url.invalid", wrong);
  }
});

Deno.test("urlSource() refuses what has changed since it was opened", async () => {
  for (
    const later of [
      { bytes: BYTES.slice(0, 999), etag: '"1"' },
      { bytes: new Uint8Array(5), etag: '"1"' },
      { bytes: BYTES, etag: '"2"' },
      { bytes: BYTES },
    ]
  ) {
    let now: Served = { bytes: BYTES, etag: '"1"' };
    await using here = await serveRanges(() => now);
    const source = await urlSource(here.url);
    now = later;
    assert.equal(await refusal(source.read(10, 20)), "input file.changed");
  }
});

Deno.test("urlSource() refuses answers that are not the bytes asked for, short or without end", async () => {
  const part = (range: string, body: Uint8Array) => (response: ServerResponse) => {
    response.writeHead(206, { "content-range": range }).end(body);
    return true;
  };
  const endless = (response: ServerResponse) => {
    response.writeHead(206, { "content-range": "bytes 10-29/1000" });
    const more = () => {
      while (!response.destroyed && response.write(BYTES));
    };
    response.on("drain", more);
    more();
    return true;
  };
  const cases: [spoil: (response: ServerResponse) => boolean, expected: string][] = [
    [part("bytes 11-30/1000", BYTES.slice(0, 20)), "input url.no-ranges"],
    [part("bytes 10-29/1000", BYTES.slice(0, 19)), "resources url.unreachable"],
    [part("bytes 10-29/1000", BYTES.slice(0, 21)), "input url.no-ranges"],
    [endless, "input url.no-ranges"],
  ];
  for (const [spoil, expected] of cases) {
    await using here = await server(() => ({ bytes: BYTES }), spoil);
    const source = await urlSource(here.url);
    assert.equal(await refusal(source.read(10, 20)), expected);
  }
});

Deno.test("urlSource() ends with its signal, before, while it reads and after", async () => {
  const stop = new AbortController(), reason = new Error("stopped");
  await using here = await server(() => ({ bytes: BYTES }), (response) => {
    response.writeHead(206, { "content-range": "bytes 10-29/1000" }).write(BYTES.slice(0, 5));
    stop.abort(reason);
    return true;
  });
  const source = await urlSource(here.url, { signal: stop.signal });
  for (let i = 0; i < 2; i++) assert.equal(await source.read(10, 20).catch((error) => error), reason);
  assert.equal(await urlSource(here.url, { signal: stop.signal }).catch((error) => error), reason);
});

Deno.test("hostOf() gives the host, and refuses a browser by type", async () => {
  const runtime = await currentRuntime();
  assert.equal(hostOf(runtime, "calibrate"), runtime.host);
  const refuse = () => hostOf(browserRuntime, "calibrate");
  assert.throws(refuse, {
    kind: "resources",
    code: "runtime.no-files",
    where: "calibrate",
    message: /Can't calibrate/,
  });
});

Deno.test("a browser's SHA-256 is that of this runtime, in whatever pieces", async () => {
  const hash = (sha256: typeof browserRuntime.sha256, pieces: number) => {
    const hasher = sha256(), length = Math.ceil(BYTES.length / pieces);
    for (let i = 0; i < pieces; i++) hasher.update(BYTES.subarray(i * length, (i + 1) * length));
    return hasher.digest();
  };
  const { sha256 } = await currentRuntime();
  assert.equal(hash(browserRuntime.sha256, 1), hash(sha256, 1));
  assert.equal(hash(browserRuntime.sha256, 7), hash(sha256, 1));
});

Deno.test("withFiles() gives a browser files by name, with the refusals that files have", async () => {
  const text = (name: string, content: string) => bufferSource(new TextEncoder().encode(content), name);
  const runtime = withFiles(browserRuntime, { "a.txt": text("x", "\ufeffhello"), "nul.txt": text("y", "a\0b") });
  assert.equal(await runtime.readText("a.txt"), "hello");
  for (let i = 0; i < 2; i++) {
    const source = await runtime.openFile("a.txt");
    assert.deepEqual([source.name, source.size, (await source.read(3, 5)).length], ["a.txt", 8, 5]);
    await source.close();
  }
  assert.equal(await refusal(runtime.readText("nul.txt")), "input text.binary");
  assert.equal(await refusal(runtime.readText("a.txt", { maxBytes: 7 })), "input text.too-large");
  assert.equal(await refusal(runtime.readText("b.txt")), "resources runtime.no-files");
  assert.equal(await refusal(runtime.openFile("toString")), "resources runtime.no-files");
});
