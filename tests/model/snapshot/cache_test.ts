import assert from "node:assert/strict";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { type ContextOptions, openContext } from "../../../model/session.ts";
import { SnapshotCache } from "../../../model/snapshot/cache.ts";
import { folderStore } from "../../../model/snapshot/folder_store.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import {
  ASK,
  bytesSource,
  cacheContent,
  QUESTION,
  savedBytes,
  snapshotModel,
  snapshotOf,
  TEXT,
} from "../../_helper/snapshots.ts";
import { PROSE, testFolder } from "../../_helper/workbench.ts";

const runtime = await currentRuntime();
const folder = await testFolder("snapshot-cache");
const model = await snapshotModel();
const GROWN = `${TEXT}At dusk the gate was opened once more, and nineteen sheep came through it. `;

let count = 0;
/** A cache of its own, empty. */
function emptyCache(maxBytes?: number): SnapshotCache {
  return new SnapshotCache(folderStore(runtime, join(folder, `${count++}`)), { maxBytes, leastTokens: 16 });
}

/** Reads a text as a command does: looks, reads, keeps. */
async function visit(snapshots: SnapshotCache, options: ContextOptions = {}, text = TEXT, kept = true) {
  using context = await openContext(model, text, { keep: "25%", policy: "defensive", ...options, snapshots });
  const { ids } = await context.ask(QUESTION, ASK);
  const name = kept ? await snapshots.keep(context, { label: "book.txt" }) : undefined;
  return {
    ids,
    name,
    reused: context.reused,
    tokens: context.tokens,
    snapshot: context.snapshot!,
    entries: context.cache.entries(),
  };
}

Deno.test("a cache finds what was read before, exactly, and answers alike", async () => {
  const snapshots = emptyCache();
  const first = await visit(snapshots), second = await visit(snapshots);
  assert.deepEqual(first.snapshot, { missed: "no snapshots are kept yet" });
  assert.deepEqual([first.reused, second.reused], [0, first.tokens]);
  assert.deepEqual(second.snapshot, { used: first.name });
  assert.deepEqual(second.ids, first.ids);
  assert.equal((await snapshots.store.list()).length, 1, "kept under the same name");
});

Deno.test("whatever differs is a miss that says what", async () => {
  const snapshots = emptyCache();
  await visit(snapshots, { policy: "gate(combine=risk)" });
  const cases: [ContextOptions, RegExp, string?][] = [
    [{ policy: "snapkv" }, /the policy differs: gate, here snapkv/],
    [{ policy: "gate(combine=risk,window=9)" }, /the parameters of the policy differ: .*here/],
    [{ keep: "26%" }, /the budget differs: fraction 0.25, here fraction 0.26/],
    [{ cacheType: "f16" }, /the type of the cache differs: f32, here f16/],
    [{ positions: "rerotate" }, /the positions differ: true, here rerotate/],
    [{ frame: "rule" }, /the words around text and question differ/],
    [{ salt: "another tenant" }, /it was made with another salt/],
    [{ explain: true }, /it has no certificates/],
    [{ maxCache: { tokens: 200, rule: "gate" } }, /it has no scores of the gate/],
    [{}, /the first token that differs is between tokens 0 and \d+ of/, `Another ${TEXT}`],
    [{}, /the text ends|the text is only|differs/, TEXT.slice(0, -40)],
  ];
  for (const [options, reason, text] of cases) {
    const { reused, snapshot } = await visit(snapshots, { policy: "gate(combine=risk)", ...options }, text, false);
    assert.equal(reused, 0, `${reason}`);
    assert.match((snapshot as { missed: string }).missed, reason);
  }
});

Deno.test("of a text that grew the beginning is reused, and the budget is that of the whole", async () => {
  for (
    const policy of [
      "defensive",
      "snapkv",
      "layer-defensive",
      "gate(combine=risk)",
      "knorm",
      "full",
      "chunkkv",
      "streaming-llm",
      "h2o",
      "kvzip(chunk=40)",
      "kvzip-plus",
      "moved",
      "expected-attention",
      "self-gate(tokens=64,chunk=32)",
      "kvzip(refit=both)",
      "snapkv(rows=int8)",
    ]
  ) {
    const snapshots = emptyCache(), old = await visit(snapshots, { policy });
    const grown = await visit(snapshots, { policy }, GROWN);
    assert.ok(
      grown.reused > old.tokens / 2 && grown.reused <= old.tokens,
      `${policy}: ${grown.reused} of ${old.tokens}`,
    );
    const anew = await visit(emptyCache(), { policy }, GROWN);
    assert.ok(grown.entries <= anew.entries && grown.entries > 0.9 * anew.entries, `${policy}: ${grown.entries}`);
    assert.notEqual(
      grown.name,
      anew.name,
      "a context that was gone on with goes by another name than one read at once",
    );
    const again = await visit(snapshots, { policy }, GROWN);
    assert.deepEqual([again.reused, again.ids], [again.tokens, grown.ids]);
  }
});

Deno.test("a default that few heads decide grows with the text, as a share does", async () => {
  const snapshots = emptyCache(), options = { policy: "snapkv", keep: undefined }, long = PROSE.slice(0, 4000);
  const old = await visit(snapshots, options, long), grown = await visit(snapshots, options, PROSE.slice(0, 4400));
  assert.deepEqual(grown.snapshot, { used: old.name });
  assert.ok(grown.reused > old.tokens / 2, `${grown.reused} of ${old.tokens}`);
  assert.ok(Math.abs(grown.entries / grown.tokens - old.entries / old.tokens) < 0.05);
  assert.equal((await visit(snapshots, { ...options, keep: "50%" }, long, false)).reused, old.tokens);
});

Deno.test("reading on behind everything is reading: the answers are those of the whole text", async () => {
  const snapshots = emptyCache(), options = { policy: "full", keep: "100%" };
  await visit(snapshots, options);
  const grown = await visit(snapshots, options, GROWN), anew = await visit(emptyCache(), options, GROWN);
  assert.ok(grown.reused > 0);
  assert.deepEqual(grown.ids, anew.ids);
  using on = await openContext(model, GROWN, { ...options, snapshot: bytesSource(await snapshotOf(model, options)) });
  using whole = await openContext(model, GROWN, options);
  const [a, b] = [await cacheContent(on), await cacheContent(whole)];
  a.content.forEach((head, i) => {
    assert.deepEqual(head.positions, b.content[i].positions);
    head.keys.forEach((x, j) => assert.ok(Math.abs(x - b.content[i].keys[j]) < 1e-3));
  });
  assert.deepEqual([a.position, a.seen], [b.position, b.seen]);
});

Deno.test("gone on with under a gate's cap, with moved positions, and with the text in the file", async () => {
  const maxCache = { tokens: 90, rule: "gate" } as const;
  for (const options of [{ maxCache }, { positions: "rerotate" as const }]) {
    const snapshots = emptyCache();
    await visit(snapshots, options);
    const grown = await visit(snapshots, options, GROWN), again = await visit(snapshots, options, GROWN);
    assert.ok(grown.reused > 0, JSON.stringify(grown.snapshot));
    assert.deepEqual(again.ids, grown.ids);
  }
  using context = await openContext(model, TEXT, { policy: "snapkv", keep: "25%" });
  const source = bytesSource(await savedBytes(context, { withText: true }));
  using grown = await openContext(model, GROWN, { policy: "snapkv", keep: "25%", snapshot: source });
  assert.ok(grown.reused > 0);
  const other = openContext(model, `Other ${GROWN}`, { policy: "snapkv", keep: "25%", snapshot: source });
  await assert.rejects(other, {
    code: "snapshot.tokens",
    message: /at token \d+ of \d+ it has \d+, the text has token/,
  });
  const policy = openContext(model, GROWN, { policy: "defensive", keep: "25%", snapshot: source });
  await assert.rejects(policy, { code: "snapshot.identity", where: "policy" });
  using restored = await model.restore(source);
  await savedBytes(restored, { withText: true });
  using textless = await model.restore(bytesSource(await savedBytes(restored)));
  await assert.rejects(savedBytes(textless, { withText: true }), { code: "snapshot.no-text" });
});

Deno.test("what can't be gone on with is read whole, and the miss says so", async () => {
  const cases: [ContextOptions, RegExp][] = [
    [{ keep: "40" }, /has all of the 40 entries per head/],
    [{ keep: undefined, bytes: "8kB" }, /has all of the \d+ entries per head/],
    [{ keep: undefined, risk: 0.3 }, /what the last queries lose of entries that are gone can't be measured/],
    [{ policy: "gate(read=stream)" }, /compete by scores that end with the reading/],
    [{ policy: "snapkv(merge=mean)" }, /what was merged into its last tokens/],
    [{ policy: "snapkv(key-channels=60%)" }, /the channels of a head's keys were chosen/],
    [{ explain: true }, /a certificate is of all entries/],
  ];
  for (const [options, reason] of cases) {
    const snapshots = emptyCache();
    await visit(snapshots, options);
    const { reused, snapshot } = await visit(snapshots, options, GROWN);
    assert.equal(reused, 0);
    assert.match((snapshot as { missed: string }).missed, reason);
  }
});

Deno.test("a cache never has more bytes than it may; what was not used for longest goes first", async () => {
  const measure = emptyCache();
  await visit(measure);
  const [{ size }] = await measure.store.list(), snapshots = emptyCache(Math.floor(2.5 * size));
  const bytes = async () => (await snapshots.store.list()).reduce((sum, each) => sum + each.size, 0);
  const texts = [TEXT, TEXT.replaceAll("keeper", "warden"), TEXT.replaceAll("stakes", "posts")];
  const names: (string | undefined)[] = [];
  for (const text of texts.slice(0, 2)) names.push((await visit(snapshots, {}, text)).name);
  await new Promise((done) => setTimeout(done, 20));
  assert.ok((await visit(snapshots, {}, TEXT, false)).reused > 0, "the first is used again");
  names.push((await visit(snapshots, {}, texts[2])).name);
  assert.ok(await bytes() <= snapshots.maxBytes);
  assert.deepEqual((await snapshots.store.list()).map(({ name }) => name), [names[0], names[2]].sort());
  assert.equal(
    (await visit(new SnapshotCache(snapshots.store, { maxBytes: size - 1, leastTokens: 16 }), { keep: "30%" })).name,
    undefined,
  );
  assert.equal((await snapshots.store.list()).length, 2, "what is too large pushes nothing out");
  const enough = AbortSignal.abort(new Error("enough"));
  await assert.rejects(snapshots.prune(0, undefined, { signal: enough }), /^Error: enough$/);
  assert.equal((await snapshots.prune(0)).length, 2, "an abort removed none");
});

Deno.test("a damaged snapshot in a cache is a miss, is replaced, and short texts are left alone", async () => {
  const snapshots = emptyCache(), { name, ids } = await visit(snapshots);
  const bytes = await snapshots.store.get(name!);
  bytes[bytes.length >> 1] ^= 1;
  await snapshots.store.put(name!, bytes);
  const again = await visit(snapshots);
  assert.match((again.snapshot as { missed: string }).missed, /section layer\.\d is damaged/);
  assert.deepEqual(again.ids, ids);
  assert.equal((await visit(snapshots)).reused, again.tokens, "it was put there anew");
  await snapshots.store.put("nonsense", new Uint8Array(100));
  assert.equal((await visit(snapshots)).reused, again.tokens);
  const place = snapshots.store.place;
  for (const file of await readdir(place)) assert.equal((await stat(join(place, file))).mode & 0o77, 0);
  const short = new SnapshotCache(snapshots.store);
  const { name: none, snapshot } = await visit(short, {}, "A short text about gates.");
  assert.equal(none, undefined);
  assert.match((snapshot as { missed: string }).missed, /is read at once/);
});
