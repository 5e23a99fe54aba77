import assert from "node:assert/strict";
import process from "node:process";
import { connect } from "node:net";
import { openStore } from "../../../model/snapshot/stores/open.ts";
import { loadValkeyClient } from "../../../model/snapshot/stores/clients.ts";
import { valkeyStore } from "../../../model/snapshot/stores/valkey.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import { findRedis, freePort, startRedis, type TestRedis } from "../../_helper/redis.ts";
import { skipped } from "../../_helper/skip.ts";
import { storeSuite } from "../../_helper/snapshot_stores.ts";

const MIB = 2 ** 20;

/** One command in the server's protocol, from outside the store. */
function command(port: number, ...words: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1", () => {
      socket.write(`*${words.length}\r\n` + words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join(""));
    });
    let answer = "";
    socket.on("data", (data) => {
      answer += data;
      if (answer.endsWith("\r\n")) socket.end();
    });
    socket.on("close", () => resolve(answer));
    socket.on("error", reject);
  });
}

const keysOf = async ({ port }: TestRedis) =>
  [...(await command(port, "KEYS", "*")).matchAll(/palisade:\{snapshots\}:[^\r]+/g)].map(([key]) => key.slice(21))
    .sort();

const program = await findRedis();
if (program === undefined) skipped("the Valkey store keeps the contract", "no redis-server and no way to install it");
else {
  const shared = await startRedis(program);
  globalThis.addEventListener("unload", () => process.kill(shared.pid, "SIGKILL"));
  storeSuite("the Valkey store", () => valkeyStore(shared.url));
  storeSuite("the Valkey store with small parts", () => valkeyStore(shared.url, { partBytes: 100_000 }));

  Deno.test("the Valkey store leaves nothing of what was replaced, failed or deleted", async () => {
    await using server = await startRedis(program);
    await using store = await openStore(server.url, await currentRuntime());
    assert.equal(store.place, server.url);
    await store.put("a", new Uint8Array(9 * MIB));
    const first = await keysOf(server);
    assert.equal(first.filter((key) => key.startsWith("part:")).length, 2);
    await store.put("a", new Uint8Array(1));
    for (const key of first.filter((key) => key.startsWith("part:"))) {
      const left = Number((await command(server.port, "TTL", `palisade:{snapshots}:${key}`)).slice(1));
      assert.ok(left > 0 && left <= 60, `who reads it may go on for a minute: ${left}`);
    }
    const failing = (async function* () {
      yield new Uint8Array(9 * MIB);
      await Promise.resolve();
      throw new Error("enough");
    })();
    await assert.rejects(store.put("b", failing), /enough/);
    assert.equal((await keysOf(server)).length, 2 + 2 + 1, "two tables, the old parts, the new one");
    assert.equal(await store.delete("a"), true);
    assert.deepEqual(await keysOf(server), first.filter((key) => key.startsWith("part:")));
  });

  Deno.test("the parts of a put that is cut off end by themselves", async () => {
    await using server = await startRedis(program);
    const store = await valkeyStore(server.url, { partBytes: 1000 });
    let given = () => {};
    const both = new Promise<void>((resolve) => given = resolve);
    const put = store.put(
      "a",
      (async function* () {
        yield new Uint8Array(1000);
        yield new Uint8Array(1000);
        given();
        await new Promise(() => {});
      })(),
    );
    put.catch(() => {});
    await both;
    await store[Symbol.asyncDispose]();
    const parts = await keysOf(server);
    assert.ok(parts.length >= 1);
    for (const key of parts) {
      const left = Number((await command(server.port, "TTL", `palisade:{snapshots}:${key}`)).slice(1));
      assert.ok(left > 0 && left <= 3600, `${key}: ${left}`);
    }
  });

  Deno.test("a part that the server lost, or a table that says nonsense, is no snapshot", async () => {
    await using server = await startRedis(program);
    await using store = await valkeyStore(server.url);
    await store.put("a", new Uint8Array(10));
    const part = (await keysOf(server)).find((key) => key.startsWith("part:"))!;
    await command(server.port, "DEL", `palisade:{snapshots}:${part}`);
    await assert.rejects(store.get("a"), { code: "store.failed", message: /a part of the snapshot a is gone/ });
    const huge = JSON.stringify({ version: "v", size: 2 ** 50, parts: 1, partBytes: 1 });
    for (const nonsense of ["", "{", "[]", "null", "{}", huge, `{"version":1,"size":1,"parts":1,"partBytes":1}`]) {
      await command(server.port, "HSET", "palisade:{snapshots}:names", "a", nonsense);
      assert.equal(await store.head("a"), undefined);
      assert.deepEqual(await store.list(), []);
      await assert.rejects(store.get("a"), { code: "snapshot.missing" });
    }
  });

  Deno.test("a server that wants a password, is full or goes away is told by type", async () => {
    {
      await using server = await startRedis(program, ["--requirepass", "secret"]);
      await assert.rejects(valkeyStore(server.url), { code: "store.refused", kind: "resources" });
      await using store = await valkeyStore(server.url.replace("//", "//:secret@"));
      await store.put("a", new Uint8Array(1));
      assert.ok(!store.place.includes("secret"), store.place);
    }
    await using server = await startRedis(program, ["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]);
    await using store = await valkeyStore(server.url, { partBytes: MIB });
    await assert.rejects(store.put("a", new Uint8Array(8 * MIB)), { code: "store.full" });
    assert.equal(await store.head("a"), undefined);
    await server[Symbol.asyncDispose]();
    const works = [
      () => store.get("a"),
      () => store.put("a", new Uint8Array(1)),
      () => store.list(),
      () => store.delete("a"),
    ];
    await Promise.all(works.map((work) => assert.rejects(work, { code: "store.unreachable" })));
  });
}

Deno.test("no server there, and no address, is told by type", async () => {
  await assert.rejects(valkeyStore(`redis://127.0.0.1:${await freePort()}`), { code: "store.unreachable" });
  const runtime = await currentRuntime();
  for (const bad of ["redis://h/x", "redis://u:p@h:0", "rediss://h/0?x=1", "http://h/", "s3:///x", "gopher://h"]) {
    await assert.rejects(openStore(bad, runtime), (error: Error & { code: string }) => {
      assert.equal(error.code, "store.url", bad);
      assert.ok(!error.message.includes("u:p"), error.message);
      return true;
    });
  }
});

Deno.test("without the client, the package to install is named", async () => {
  const missing = () => Promise.reject(new Error("Cannot find package"));
  await assert.rejects(loadValkeyClient(missing), { code: "store.package", message: /install ioredis@\d/ });
});
