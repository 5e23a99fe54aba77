/** Exact identity: whatever decides what is kept makes another snapshot when it alone is otherwise; and nothing else does. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { policies, resolvePolicy } from "../../../core/policy/registry.ts";
import type { Parameter } from "../../../core/policy/policy.ts";
import { insideOf } from "../../../model/context.ts";
import { type Gate, parseGate } from "../../../model/gate/file.ts";
import { learnedPath } from "../../../model/gate/learned.ts";
import { type ContextOptions, openContext } from "../../../model/session.ts";
import { SnapshotCache } from "../../../model/snapshot/cache.ts";
import { folderStore } from "../../../model/snapshot/folder_store.ts";
import {
  type Identity,
  IDENTITY_FIELDS,
  type IdentityField,
  modelIdentity,
  policyIdentity,
  readingIdentity,
} from "../../../model/snapshot/identity.ts";
import { loadModel, type Model } from "../../../model/model.ts";
import { readHeader } from "../../../model/snapshot/restore.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import { anyChunks } from "../../_helper/chunks.ts";
import { randomGate } from "../../_helper/gate.ts";
import { bytesSource, savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";
import { anyStatistics } from "../../_helper/statistics.ts";
import { randomSoftTokens } from "../../_helper/soft_tokens.ts";
import { testFolder } from "../../_helper/workbench.ts";

const model = await snapshotModel(), { config } = model;
const folder = await testFolder("alone"), heads = join(folder, "heads.json");
const rows = Array.from({ length: config.layers }, () => new Array<number>(config.kvHeads).fill(0.5));
await writeFile(heads, JSON.stringify(rows));

async function identityOf(options: ContextOptions, of: Model = model, text = TEXT): Promise<Identity> {
  using context = await openContext(of, text, options);
  const { model: opened, state } = insideOf(context);
  return { ...await modelIdentity(opened, state.read.salt), ...readingIdentity(await state.facts()) };
}

function differing(a: Identity, b: Identity): IdentityField[] {
  return IDENTITY_FIELDS.filter((field) => a[field] !== b[field]);
}

const gate = randomGate(config),
  chunks = anyChunks(config),
  statistics = anyStatistics(config),
  softTokens = randomSoftTokens(config);
const changed = (weights: Float32Array, by: number) => weights.map((each, i) => i === 7 ? each + by : each);
/** A gate of another weight, by less than its file's float16 tells apart. */
const nearGate: Gate = { ...gate, weights: changed(gate.weights, 1e-6) };
const recalibrated: Gate = {
  ...gate,
  info: { ...gate.info, conformal: { ...gate.info.conformal, scores: [1, 2, 4] } },
};
const plusGate = (each: Gate): Gate => {
  return { ...each, info: { ...each.info, calibration: { ...each.info.calibration, towards: "kvzip-plus" } } };
};
const withChunks = (agreement: Float32Array): Model => {
  return { ...model, chunks: () => Promise.resolve({ ...chunks, agreement }) };
};
const [SELF, JUDGE] = ["self-gate(tokens=64,chunk=32)", "judge-q"];

type Case = readonly [
  what: string,
  base: ContextOptions,
  change: ContextOptions,
  fields: readonly IdentityField[],
  other?: Model,
];

const DEFENSIVE = { policy: "defensive", keep: "50%" } as const;
const CASES: readonly Case[] = [
  ["a gate's weight", { policy: "gate", gate }, { gate: nearGate }, ["files"]],
  ["what a gate was calibrated on", { policy: "gate", gate }, { gate: recalibrated }, ["files"]],
  ["kvzap's gate", { policy: "kvzap", gate: plusGate(gate) }, { gate: plusGate(nearGate) }, ["files"]],
  ["what self-gate begins with", { policy: SELF, gate }, { gate: nearGate }, ["files"]],
  ["that self-gate begins with something", { policy: SELF, learned: false }, { gate }, ["files"]],
  ["fasa's chunks", { policy: "fasa(entries=48)" }, {}, ["files"], withChunks(changed(chunks.agreement, 1e-6))],
  [
    "statistics of queries",
    { policy: "triattention(statistics=calibrated)" },
    {},
    ["files"],
    { ...model, statistics: () => Promise.resolve({ ...statistics, mean: changed(statistics.mean, 1e-6) }) },
  ],
  ["whose statistics", { policy: "qfilter" }, { policy: "qfilter(statistics=calibrated)" }, ["parameters", "files"]],
  [
    "judge-q's tokens",
    { policy: JUDGE, softTokens },
    { softTokens: { ...softTokens, embeddings: changed(softTokens.embeddings, 1e-6) } },
    ["files"],
  ],
  ["the horizon of query statistics", { policy: "expected-attention" }, {
    policy: "expected-attention(future=511)",
  }, ["parameters"]],
  ["the distances that are meaned over", { policy: "triattention" }, { policy: "triattention(future=512)" }, [
    "parameters",
  ]],
  ["that of qfilter's direction", { policy: "qfilter" }, { policy: "qfilter(future=511)" }, ["parameters"]],
  ["published code", { policy: "snapkv" }, { policy: "snapkv@reference" }, ["policy", "parameters"]],
  ["a policy's scorer", { policy: "chunkkv(snapkv)" }, { policy: "chunkkv(tova)" }, ["policy", "parameters"]],
  ["rows", DEFENSIVE, { policy: "defensive(rows=int8)" }, ["parameters"]],
  ["a merge", DEFENSIVE, { policy: "defensive(merge=mean)" }, ["parameters"]],
  ["channels of keys", DEFENSIVE, { policy: "defensive(key-channels=60%)" }, ["parameters"]],
  ["a refit", DEFENSIVE, { refit: "both" }, ["way"]],
  ["budget", DEFENSIVE, { keep: "51%" }, ["budget"]],
  ["a budget in bytes", { policy: "defensive", bytes: "1/4" }, { bytes: "1/5" }, ["budget"]],
  ["a risk", { policy: "defensive", risk: 0.3 }, { risk: 0.31 }, ["budget"]],
  ["which risk", { policy: "defensive-risk", riskWorst: 0.3 }, { riskWorst: undefined, risk: 0.3 }, ["budget", "way"]],
  ["type of the cache", DEFENSIVE, { cacheType: "f16" }, ["cacheType"]],
  ["positions", DEFENSIVE, { positions: "rerotate" }, ["positions"]],
  ["words around the text", DEFENSIVE, { frame: "rule" }, ["frame"]],
  ["no words", DEFENSIVE, { frame: "none" }, ["template", "frame"]],
  ["salt", DEFENSIVE, { salt: "another" }, ["salt"]],
  ["a cap below the budget", DEFENSIVE, { maxCache: { tokens: 90 } }, ["budget"]],
  ["that cap", { ...DEFENSIVE, maxCache: { tokens: 90 } }, { maxCache: { tokens: 91 } }, ["budget"]],
  ["a step policy that wants a gate", { ...DEFENSIVE, maxCache: { tokens: 900 } }, {
    maxCache: { tokens: 900, rule: "gate" },
  }, ["files"]],
  // What acts later, or tells more, changes nothing of what is kept.
  ["nothing", DEFENSIVE, {}, []],
  ["a cap above the budget", DEFENSIVE, { maxCache: { tokens: 900 } }, []],
  ["a step policy", { ...DEFENSIVE, maxCache: { tokens: 90 } }, { maxCache: { tokens: 90, rule: "h2o" } }, []],
  ["a certificate", DEFENSIVE, { explain: true }, []],
  ["what nothing asks for", DEFENSIVE, { gate: nearGate, softTokens }, []],
  ["that a gate is kept", { policy: SELF, gate }, { learn: false }, []],
  ["a default said", { policy: "defensive" }, { policy: "defensive(window=32)" }, []],
];

Deno.test("each thing that decides what is kept, changed alone, makes another snapshot; nothing else does", async () => {
  for (const [what, base, change, fields, other] of CASES) {
    const [was, is] = [await identityOf(base), await identityOf({ ...base, ...change }, other)];
    assert.deepEqual(differing(was, is), fields, what);
  }
});

Deno.test("system text and thinking make another template, and nothing else differs", async () => {
  const load = (more: object) => snapshotModel("qwen3-plain", { frame: undefined, ...more });
  await using plain = await load({});
  const was = await identityOf(DEFENSIVE, plain);
  await using told = await load({ system: "You count sheep." });
  assert.deepEqual(differing(was, await identityOf(DEFENSIVE, told)), ["template"]);
  const thinking = {
    ...plain,
    frame: { ...plain.frame, thinking: { open: "<think>", close: "</think>", asked: true, begun: true } },
  };
  assert.deepEqual(differing(was, await identityOf(DEFENSIVE, thinking)), ["template"]);
});

/** Another value that the parameter may have. */
function otherValue({ name, type, default: usual, ...bounds }: Parameter): string | undefined {
  if (type === "text") {
    const choices = (bounds as { choices?: readonly string[] }).choices;
    if (choices) return choices.find((each) => each !== usual);
    return name === "file" ? "other.json" : name === "statistics" ? "calibrated" : undefined;
  }
  const { max = Infinity } = bounds as { max?: number };
  const next = type === "integer" ? (name === "kernel" ? usual + 2 : usual + 1) : usual * 0.9 || 0.1;
  return `${next > max ? usual - 1 : next}`;
}

Deno.test("every parameter of every policy, and of the policy inside another, is in the identity", () => {
  let count = 0;
  const compare = (outer: string, inner: string) => {
    const attempt = (text: string) => {
      try {
        return policyIdentity(resolvePolicy(text));
      } catch {
        return undefined;
      }
    };
    const [a, b] = [attempt(outer), attempt(inner)];
    if (!a || !b) return;
    count++;
    assert.notDeepEqual(a, b, `${outer} and ${inner}`);
  };
  for (const { name, parameters, over } of policies) {
    for (const parameter of parameters) {
      const value = otherValue(parameter);
      if (value !== undefined) compare(name, `${name}(${parameter.name}="${value}")`);
    }
    if (over === undefined) continue;
    for (const scorer of policies.filter((each) => each.over === undefined)) {
      for (const parameter of scorer.parameters) {
        const value = otherValue(parameter);
        if (value === undefined) continue;
        compare(`${name}(${scorer.name})`, `${name}(${scorer.name}(${parameter.name}="${value}"))`);
      }
    }
  }
  assert.ok(count > 300, `${count} compared`);
});

Deno.test("what files said when the text was read is what counts, whatever they say when it is saved", async () => {
  const policy = `headkv(file=${heads})`, before = await identityOf({ policy });
  using context = await openContext(model, TEXT, { policy });
  await writeFile(heads, JSON.stringify(rows.map((row) => row.map((each, i) => each + i))));
  const { identity } = await readHeader(bytesSource(await savedBytes(context)), model);
  assert.equal(identity.files, before.files);
  assert.deepEqual(differing(before, await identityOf({ policy })), ["files"]);
  let agreement = chunks.agreement;
  const changing: Model = { ...model, chunks: () => Promise.resolve({ ...chunks, agreement }) };
  using foreseen = await openContext(changing, TEXT, { policy: "fasa(entries=48)" });
  agreement = changed(agreement, 0.1);
  const saved = await readHeader(bytesSource(await savedBytes(foreseen)), model);
  assert.equal(saved.identity.files, (await identityOf({ policy: "fasa(entries=48)" })).files);
});

/** A model whose learned gates lie in a folder of their own, and a cache of snapshots. */
async function learner(name: string): Promise<{ learning: Model; snapshots: SnapshotCache; path: string }> {
  const real = await currentRuntime(), place = await testFolder(name);
  const environment = (key: string) => key === "PALISADE_CACHE" ? place : real.environment(key);
  const runtime = Object.assign(Object.create(real) as typeof real, { environment });
  const path = (model.file as { readonly name: string }).name;
  const learning = await loadModel(path, runtime, { dense: "web", backend: "wasm", frame: "line" });
  const snapshots = new SnapshotCache(folderStore(runtime, join(place, "kept")));
  return { learning, snapshots, path: learnedPath(runtime, await learning.identity()) };
}

const BOOKS = ["sheep", "goats"].map((each) => TEXT.replaceAll("stakes", each).repeat(15));

/** Reads a book as `ask` does: looks, reads, learns, keeps. */
async function visit({ learning, snapshots }: Awaited<ReturnType<typeof learner>>, book: number, more = {}) {
  const told = { policy: "self-gate", keep: "20%", learn: true, snapshots, ...more };
  using context = await openContext(learning, BOOKS[book], told);
  if (context.reused === 0) await snapshots.keep(context, { label: `book ${book}` });
  const { snapshot, selfGate } = context;
  return { missed: snapshot && "missed" in snapshot ? snapshot.missed : undefined, stored: selfGate?.stored };
}

Deno.test("self-gate: a reading is part of what it left, so its snapshot is used while that has only grown", async () => {
  const place = await learner("learned");
  await using _ = place.learning;
  const reasons = (visits: { missed?: string }[]) => visits.map(({ missed }) => missed !== undefined);
  // Both are read, and teach; then both are found, though what is known is no longer what they began with.
  const visits = [];
  for (const book of [0, 1, 0, 1, 0]) visits.push(await visit(place, book));
  assert.deepEqual(reasons(visits), [true, true, false, false, false]);
  assert.deepEqual(visits.slice(0, 2).map(({ stored }) => stored), [true, true]);
  const { info: { calibration: { grown } } } = parseGate(new Uint8Array(await readFile(place.path)), "learned");
  assert.equal(grown!.length, 2);
  // Nothing known is another beginning than something; the first book's reading had nothing known.
  const alone = { learned: false, learn: false };
  assert.equal((await visit(place, 0, alone)).missed, undefined);
  assert.ok((await visit(place, 1, alone)).missed);
  assert.equal((await visit(place, 1, alone)).missed, undefined);
});

Deno.test("self-gate: what was learned elsewhere is another beginning; whoever names a snapshot means it", async () => {
  const [here, there] = [await learner("learned-here"), await learner("learned-there")];
  await using _ = here.learning;
  await using __ = there.learning;
  await visit(here, 0);
  await visit(there, 1);
  // The same machine with another's learning: no reading of here is part of it.
  await writeFile(here.path, await readFile(there.path));
  assert.match((await visit(here, 0, { learn: false })).missed!, /what self-gate had learned of other texts differs/);
  assert.equal((await visit(here, 0, { learn: false })).missed, undefined, "read with it, and kept");
  using context = await openContext(here.learning, BOOKS[0], { policy: "self-gate", keep: "20%" });
  const source = bytesSource(await savedBytes(context));
  const ask = (more: ContextOptions) => {
    const told = { policy: "self-gate", keep: "20%", snapshot: source, ...more };
    return openContext(there.learning, `${BOOKS[0]} And more of it.`, told);
  };
  await visit(there, 0);
  using grown = await ask({});
  assert.ok(grown.reused > 0);
  await assert.rejects(ask({ learned: false }), { code: "snapshot.identity", where: "files" });
  // Both beginnings stand in what was gone on with.
  const { identity } = await readHeader(bytesSource(await savedBytes(grown)), model);
  const known = [context, grown].map(async (each) => (await insideOf(each).state.facts()).files.known);
  assert.equal(new Set(await Promise.all(known)).size, 2);
  assert.match(identity.way, /gone on at/);
});
