/** What every snapshot store must do: one suite for all of them. */
import assert from "node:assert/strict";
import { type SnapshotStore, storeSink, storeSource } from "../../model/snapshot/store.ts";

const bytes = (...parts: number[]) => Uint8Array.from(parts);

/** Registers the suite; `open` gives a store that is empty, or has nothing that begins with `suite-`. */
export function storeSuite(name: string, open: () => Promise<SnapshotStore>): void {
  const test = (what: string, body: (store: SnapshotStore) => Promise<void>) =>
    Deno.test(`${name} ${what}`, async () => {
      await using store = await open();
      for (const { name } of await store.list("suite-")) await store.delete(name);
      try {
        await body(store);
      } finally {
        for (const { name } of await store.list("suite-")) await store.delete(name);
      }
    });

  test("gives what was put, and any range of it", async (store) => {
    const content = crypto.getRandomValues(new Uint8Array(5000));
    await store.put("suite-a", content);
    assert.deepEqual(await store.get("suite-a"), content);
    assert.deepEqual(await store.get("suite-a", { offset: 4990, length: 10 }), content.slice(4990));
    assert.deepEqual(await store.get("suite-a", { offset: 0, length: 0 }), bytes());
    await assert.rejects(store.get("suite-a", { offset: 4990, length: 11 }), RangeError);
    await assert.rejects(store.get("suite-a", { offset: -1, length: 1 }), RangeError);
    const source = await storeSource(store, "suite-a");
    assert.equal(source.size, 5000);
    assert.deepEqual(await source.read(17, 3), content.slice(17, 20));
    await source.close();
  });

  test("puts a stream, and replaces what was there", async (store) => {
    await store.put("suite-a", bytes(1, 2, 3));
    const sink = storeSink(store, "suite-a"), shared = new Uint8Array(2);
    for (const value of [4, 5, 6]) await sink.write(shared.fill(value));
    assert.deepEqual(await store.get("suite-a"), bytes(1, 2, 3), "not before the commit");
    await sink.commit();
    assert.deepEqual(await store.get("suite-a"), bytes(4, 4, 5, 5, 6, 6));
  });

  test("changes nothing when the stream fails or is given up", async (store) => {
    await store.put("suite-a", bytes(1, 2, 3));
    const failing = (async function* () {
      yield bytes(9);
      await Promise.resolve();
      throw new Error("the giver failed");
    })();
    await assert.rejects(store.put("suite-a", failing), /the giver failed/);
    const sink = storeSink(store, "suite-b");
    await sink.write(bytes(9));
    await sink.abort();
    assert.deepEqual(await store.get("suite-a"), bytes(1, 2, 3));
    assert.equal(await store.head("suite-b"), undefined);
  });

  test("lists by prefix, tells sizes and times, deletes", async (store) => {
    const before = Date.now() - 60_000;
    for (const [i, each] of ["suite-b1", "suite-a", "suite-b0"].entries()) await store.put(each, new Uint8Array(i));
    const listed = await store.list("suite-b");
    assert.deepEqual(listed.map(({ name, size }) => [name, size]), [["suite-b0", 2], ["suite-b1", 0]]);
    assert.deepEqual((await store.list("suite-")).map(({ name }) => name), ["suite-a", "suite-b0", "suite-b1"]);
    const head = (await store.head("suite-a"))!;
    assert.deepEqual([head.name, head.size], ["suite-a", 1]);
    assert.ok(head.used > before && head.used < Date.now() + 60_000, `${head.used}`);
    await store.touch?.("suite-a");
    assert.ok((await store.head("suite-a"))!.used >= head.used);
    assert.equal(await store.delete("suite-a"), true);
    assert.equal(await store.delete("suite-a"), false);
    assert.equal(await store.head("suite-a"), undefined);
    await store.touch?.("suite-a");
    for (const gone of [store.get("suite-a"), storeSource(store, "suite-a")]) {
      await assert.rejects(gone, { code: "snapshot.missing" });
    }
  });

  test("refuses names that are no names", async (store) => {
    for (const bad of ["", ".", "..", ".hidden", "a/b", "a\\b", "../a", "a\0b", "a b", "ä", "x".repeat(65), "*"]) {
      await assert.rejects(store.get(bad), { code: "snapshot.name" }, bad);
      await assert.rejects(store.put(bad, bytes(1)), { code: "snapshot.name" }, bad);
      await assert.rejects(store.head(bad), { code: "snapshot.name" }, bad);
      await assert.rejects(store.delete(bad), { code: "snapshot.name" }, bad);
      assert.throws(() => storeSink(store, bad), { code: "snapshot.name" }, bad);
    }
  });
}
