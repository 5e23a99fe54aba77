import assert from "node:assert/strict";
import process from "node:process";
import { openStore } from "../../../model/snapshot/stores/open.ts";
import { loadS3Client } from "../../../model/snapshot/stores/clients.ts";
import { parseS3Url, s3Store } from "../../../model/snapshot/stores/s3.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import { freePort } from "../../_helper/redis.ts";
import { findMoto, setCredentials, startS3 } from "../../_helper/s3.ts";
import { skipped } from "../../_helper/skip.ts";
import { storeSuite } from "../../_helper/snapshot_stores.ts";

const MIB = 2 ** 20;
setCredentials();

/** The SDK keeps sockets and timers of its own between requests. */
function testS3(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, fn, sanitizeOps: false, sanitizeResources: false });
}

const python = await findMoto();
if (python === undefined) skipped("the S3 store keeps the contract", "no Python with moto and no way to install it");
else {
  const server = await startS3(python), { endpoint } = server;
  globalThis.addEventListener("unload", () => process.kill(server.pid, "SIGKILL"));
  const options = { endpoint, partBytes: 5 * MIB };
  storeSuite("the S3 store", () => s3Store("s3://test-bucket/some/prefix", options), testS3);

  testS3("the S3 store leaves other objects alone, and lists page after page", async () => {
    await using store = await s3Store("s3://test-bucket/pages", { ...options, pageSize: 5 });
    await using root = await s3Store("s3://test-bucket", options);
    await Promise.all(Array.from({ length: 12 }, (_, i) => store.put(`n${100 + i}`, new Uint8Array(i))));
    for (const path of ["notes.txt", ".hidden.palisade", "deeper/n1.palisade", "a b.palisade", ".palisade"]) {
      await server.request("PUT", `/test-bucket/pages/${encodeURIComponent(path)}`, "mine");
    }
    await server.request("PUT", "/test-bucket/n1.palisade", "mine");
    assert.deepEqual((await store.list()).map(({ name, size }) => [name, size]).at(-1), ["n111", 11]);
    assert.equal((await store.list()).length, 12);
    assert.deepEqual((await root.list()).map(({ name }) => name), ["n1"]);
    assert.equal(new TextDecoder().decode(await root.get("n1")), "mine");
    assert.equal(await root.delete("n1"), true);
  });

  testS3("an upload in parts that fails leaves no parts", async () => {
    await using store = await s3Store("s3://test-bucket/parts", options);
    const failing = (async function* () {
      yield new Uint8Array(6 * MIB);
      await Promise.resolve();
      throw new Error("enough");
    })();
    await assert.rejects(store.put("a", failing), /enough/);
    assert.ok(!/<Upload>/.test(await server.request("GET", "/test-bucket?uploads")));
    assert.equal(await store.head("a"), undefined);
  });

  testS3("the address of the server comes from the environment", async () => {
    process.env["AWS_ENDPOINT_URL_S3"] = endpoint;
    try {
      await using store = await openStore("s3://test-bucket/environment/", await currentRuntime());
      assert.equal(store.place, "s3://test-bucket/environment/");
      await store.put("a", new Uint8Array(1));
      assert.equal((await store.list()).length, 1);
    } finally {
      delete process.env["AWS_ENDPOINT_URL_S3"];
    }
  });

  testS3("a bucket that isn't there, and a server that goes away, are told by type", async () => {
    await using lost = await s3Store("s3://no-such-bucket", options);
    const bytes = new Uint8Array(1);
    for (const work of [() => lost.get("a"), () => lost.put("a", bytes), () => lost.list()]) {
      await assert.rejects(work, { code: "store.failed", message: /NoSuchBucket/ });
    }
    await using other = await startS3(python);
    await using store = await s3Store("s3://test-bucket", { ...options, endpoint: other.endpoint, attempts: 1 });
    await store.put("a", bytes);
    await other.kill();
    const works = [() => store.get("a"), () => store.put("a", bytes), () => store.list(), () => store.head("a")];
    for (const work of works) await assert.rejects(work, { code: "store.unreachable", kind: "resources" });
  });
}

testS3("no server there is told by type", async () => {
  const endpoint = `http://127.0.0.1:${await freePort()}`;
  await using store = await s3Store("s3://bucket", { endpoint, attempts: 1 });
  await assert.rejects(store.list(), { code: "store.unreachable" });
});

Deno.test("places in S3 are buckets and prefixes", () => {
  assert.deepEqual(parseS3Url("s3://abc"), { bucket: "abc", prefix: "", shown: "s3://abc/" });
  assert.deepEqual(parseS3Url("s3://a.b-c/"), { bucket: "a.b-c", prefix: "", shown: "s3://a.b-c/" });
  assert.equal(parseS3Url("s3://abc/d/e_f").prefix, "d/e_f/");
  assert.equal(parseS3Url("s3://abc/d/e_f/").prefix, "d/e_f/");
  const odd = [
    "s3:abc",
    "s3://",
    "s3://ab",
    "s3://Abc",
    "s3://abc/a//b",
    "s3://abc//",
    "s3://abc/../b",
    "s3://abc/a b",
  ];
  for (const bad of [...odd, "s3://abc?x=1", "s3://abc/ä", "s3://-abc", "s3://abc\n"]) {
    assert.throws(() => parseS3Url(bad), { code: "store.url" }, bad);
  }
  assert.throws(() => parseS3Url("s3://key:secret@abc"), (error: Error) => !error.message.includes("secret"));
});

Deno.test("without the client, the package to install is named", async () => {
  const missing = () => Promise.reject(new Error("Cannot find package"));
  await assert.rejects(loadS3Client(missing), { code: "store.package", message: /install @aws-sdk\/client-s3@\d/ });
});
