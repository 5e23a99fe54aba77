/** C6 and C7: a snapshot's place holds the old one or the new one, whatever happens while one is written. */
import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Host, Runtime } from "../../../runtime/interface.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import { PalisadeError } from "../../../core/errors.ts";
import { openContext } from "../../../model/session.ts";
import { fileSink } from "../../../model/snapshot/bytes.ts";
import { killedSaves } from "../../_helper/snapshot_kills.ts";
import { ASK, QUESTION, savedBytes, snapshotModel, snapshotOf, TEXT } from "../../_helper/snapshots.ts";
import { testFolder } from "../../_helper/workbench.ts";

const runtime = await currentRuntime(), host = runtime.host!;
const folder = await testFolder("crash");
const path = join(folder, "book.palisade");
const model = await snapshotModel();
const old = await openContext(model, TEXT, { policy: "snapkv", keep: "50%" });
const oldIds = (await old.ask(QUESTION, ASK)).ids;

/** Restores what is there and answers. */
async function answerThere(): Promise<readonly number[]> {
  const source = await runtime.openFile(path);
  try {
    using context = await model.restore(source);
    return (await context.ask(QUESTION, ASK)).ids;
  } finally {
    await source.close();
  }
}

/** Operations on files while one is written, counted from 1; `fault` is called at each before it is done. */
function faulty(fault: (step: number, operation: string) => void): { runtime: Runtime; steps: () => number } {
  let step = 0;
  const count = (operation: string) => fault(++step, operation);
  const wrapped: Host = {
    ...host,
    async create(...parameters) {
      count("create");
      const sink = await host.create(...parameters);
      const each = <A extends unknown[]>(name: string, work: (...a: A) => Promise<void>) => async (...a: A) => {
        count(name);
        await work(...a);
      };
      return { write: each("write", sink.write), sync: each("sync", sink.sync), close: () => sink.close() };
    },
    async rename(from, to) {
      count("rename");
      return await host.rename(from, to);
    },
    async syncFolder(at) {
      count("syncFolder");
      await host.syncFolder(at);
    },
  };
  return { runtime: { ...runtime, host: wrapped }, steps: () => step };
}

const FAULTS: [string, string][] = [
  ["EIO", "file.unreadable"],
  ["ENOSPC", "file.disk-full"],
  ["EACCES", "file.no-permission"],
];

Deno.test("C7: an error at any operation leaves the old snapshot, and no other file; then the new one is written", async () => {
  using fresh = await openContext(model, TEXT.toUpperCase(), { policy: "snapkv", keep: "50%" });
  const freshIds = (await fresh.ask(QUESTION, ASK)).ids;
  for (const [, code] of FAULTS) {
    for (const forGood of [false, true]) {
      await old.save(fileSink(runtime, path));
      let failures = 0;
      for (let failing = 1;; failing++) {
        const fail = new PalisadeError("resources", code, "as asked");
        const { runtime: bad, steps } = faulty((step) => {
          if (step === failing || (forGood && step > failing)) throw fail;
        });
        const saved = await fresh.save(fileSink(bad, path)).then(() => undefined, (error) => error);
        assert.deepEqual(await readdir(folder), ["book.palisade"], `step ${failing}`);
        if (failing > steps()) break;
        failures++;
        assert.equal(saved, fail, `step ${failing} of ${steps()}`);
        // Once it has its name the new one is there, even if the folder's own entry could not be synced.
        const ids = await answerThere();
        assert.ok(`${ids}` === `${oldIds}` || `${ids}` === `${freshIds}`);
      }
      assert.ok(failures > 5, `${failures} steps`);
      assert.deepEqual(await answerThere(), freshIds);
    }
  }
});

Deno.test("C7: an error while a snapshot is read is passed on, and nothing is left of it", async () => {
  await old.save(fileSink(runtime, path));
  const bytes = model.backend.memory().allocatedBytes;
  for (let failing = 1, done = false; !done; failing++) {
    const source = await runtime.openFile(path);
    let reads = 0;
    const bad = {
      ...{ name: path, size: source.size, close: () => source.close() },
      read(offset: number, length: number) {
        if (++reads === failing) return Promise.reject(new PalisadeError("input", "file.unreadable", "as asked"));
        return source.read(offset, length);
      },
    };
    const restored = model.restore(bad);
    if (await restored.then(() => false, () => true)) await assert.rejects(restored, { code: "file.unreadable" });
    else {
      done = true;
      (await restored)[Symbol.dispose]();
      assert.ok(failing > 5);
    }
    await source.close();
    assert.equal(model.backend.memory().allocatedBytes, bytes);
  }
});

Deno.test("C6: after a crash at any step the old or the new one loads, and the next save clears what was left", async () => {
  const steps: string[] = [];
  await old.save(fileSink(faulty((_, name) => steps.push(name)).runtime, path));
  assert.deepEqual([steps[0], ...steps.slice(-3)], ["create", "sync", "rename", "syncFolder"]);
  for (let last = 1; last <= steps.length; last++) {
    // A process that ends at a step: nothing after it is done, not even the cleaning up.
    const dead = new Promise<never>(() => {});
    const { runtime: dying } = faulty(() => {});
    let step = 0, died = () => {};
    const death = new Promise<void>((done) => died = done);
    const stop = <A extends unknown[], R>(work: (...a: A) => Promise<R>) => (...a: A) => {
      if (++step <= last) return work(...a);
      died();
      return dead;
    };
    const at = dying.host!;
    const frozen: Host = {
      ...at,
      processTag: `${host.processTag.split("-")[0]}-999999999`,
      create: stop(async (...parameters: Parameters<Host["create"]>) => {
        const sink = await host.create(...parameters);
        return { write: stop(sink.write), sync: stop(sink.sync), close: stop(sink.close) };
      }),
      rename: stop(host.rename),
      remove: stop(host.remove),
      syncFolder: stop(host.syncFolder),
    };
    await Promise.race([old.save(fileSink({ ...runtime, host: frozen }, path)), death]);
    assert.deepEqual(await answerThere(), oldIds, `step ${last}, ${steps[last]}`);
    await old.save(fileSink(runtime, path));
    assert.deepEqual(await readdir(folder), ["book.palisade"], "no stale file");
  }
});

Deno.test("C6: a process killed while it writes leaves the old or the new one, and nothing stale after the next", async () => {
  const snapshots = [await savedBytes(old), await snapshotOf(model, { policy: "knorm", keep: "30%" })];
  const { whole, stale } = await killedSaves({ folder: join(folder, "killed"), kills: 5, runtime, model, snapshots });
  assert.deepEqual({ whole, stale }, { whole: 5, stale: 0 });
});
