/**
 * The reliability checks of snapshots in full, each one line of JSON: damage, failed restores, crashes, faults, refusals,
 * answers. `deno task bench reliability [CHECK …] [--share 0.1]`, checks C2, C4, C5, C6, C6-eval, C10; C7 and C9 are in
 * the suite.
 */
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { PalisadeError } from "../core/errors.ts";
import { policies } from "../core/policy/registry.ts";
import { openContext } from "../model/session.ts";
import { readHeader } from "../model/snapshot/restore.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { headerEnd } from "../tests/_helper/snapshot_damage.ts";
import { dice, fuzzSnapshots } from "../tests/_helper/snapshot_fuzz.ts";
import { killedSweeps } from "../tests/_helper/eval_kills.ts";
import { killedSaves } from "../tests/_helper/snapshot_kills.ts";
import { ASK, bytesSource, QUESTION, savedBytes, snapshotModel, snapshotOf, TEXT } from "../tests/_helper/snapshots.ts";
import { randomSoftTokens } from "../tests/_helper/soft_tokens.ts";

type Bytes = Uint8Array<ArrayBuffer>;
type Figures = { readonly runs: number; readonly failures: number } & Record<string, unknown>;

const { values, positionals } = parseArgs({
  options: { share: { type: "string", default: "1" } },
  allowPositionals: true,
});
const share = Number(values.share), many = (runs: number) => Math.max(1, Math.round(runs * share));
const SEED = 18;

const runtime = await currentRuntime(), model = await snapshotModel("llama-plain", { backend: "wasm" });
const good = await snapshotOf(model, { policy: "layer-defensive", keep: "60%" });

/** Where a damaged file is refused, or why it is not as it should be. */
async function refusedAt(bytes: Bytes): Promise<{ where: string; ms: number } | undefined> {
  const start = performance.now();
  try {
    (await model.restore(bytesSource(bytes)))[Symbol.dispose]();
    return undefined;
  } catch (error) {
    const ms = performance.now() - start;
    return error instanceof PalisadeError && error.where !== "" ? { where: error.where, ms } : undefined;
  }
}

/** The damages of C4, one after another. */
async function* damages(): AsyncGenerator<Bytes> {
  const roll = dice(SEED), start = headerEnd(good);
  const flipped = (at: number) => {
    const bytes = good.slice();
    bytes[at] ^= 1 << roll(8);
    return bytes;
  };
  for (let at = 0; at < start; at += Math.ceil(1 / share)) yield flipped(at);
  for (let i = 0; i < many(10_000); i++) yield flipped(start + roll(good.length - start));
  for (let length = 0; length < 4096; length += Math.ceil(1 / share)) yield good.slice(0, length);
  for (let length = 4096; length < good.length; length += 4096) yield good.slice(0, length);
  const other = await snapshotOf(model, { policy: "layer-defensive", keep: "60%" }, { text: `Another. ${TEXT}` });
  for (let at = 8; at < Math.min(good.length, other.length); at += 1009) {
    const spliced = good.slice();
    spliced.set(other.subarray(at, good.length), at);
    if (spliced.some((byte, i) => byte !== good[i])) yield spliced;
  }
  for (let at = start; at + 8192 < good.length; at += 4096) {
    const exchanged = good.slice();
    exchanged.copyWithin(at, at + 4096, at + 8192);
    exchanged.set(good.subarray(at, at + 4096), at + 4096);
    yield exchanged;
  }
}

async function damage(): Promise<Figures> {
  let runs = 0, failures = 0, slowestMs = 0;
  const parts = new Set<string>();
  for await (const bytes of damages()) {
    const refused = await refusedAt(bytes);
    runs++;
    if (!refused) failures++;
    else {
      parts.add(refused.where);
      slowestMs = Math.max(slowestMs, refused.ms);
    }
  }
  return { runs, failures, parts: [...parts].sort(), slowestMs };
}

async function session(): Promise<Figures> {
  using context = await openContext(model, TEXT, { policy: "defensive", keep: "50%" });
  const control = `${(await context.ask(QUESTION, ASK)).ids}`, held = model.backend.memory().allocatedBytes;
  const roll = dice(SEED + 1), runs = many(1000);
  let failures = 0;
  for (let i = 0; i < runs; i++) {
    const bytes = good.slice();
    bytes[roll(bytes.length)] ^= 1 << roll(8);
    const refused = await refusedAt(bytes), same = `${(await context.ask(QUESTION, ASK)).ids}` === control;
    if (!refused || !same || model.backend.memory().allocatedBytes !== held) failures++;
  }
  return { runs, failures };
}

async function kills(): Promise<Figures> {
  const folder = mkdtempSync(join(tmpdir(), "palisade-kills-"));
  const snapshots = [good, await snapshotOf(model, { policy: "knorm", keep: "90%" })];
  const figures = await killedSaves({ folder, kills: many(500), runtime, model, snapshots });
  rmSync(folder, { recursive: true });
  const { kills: runs, whole, stale, halves } = figures;
  return { runs, failures: runs - whole + stale, halvesLeftByKills: halves, staleAfterNextSave: stale };
}

async function evalKills(): Promise<Figures> {
  const folder = mkdtempSync(join(tmpdir(), "palisade-eval-kills-"));
  const figures = await killedSweeps({ folder, kills: many(500), runtime, seed: SEED });
  rmSync(folder, { recursive: true });
  const { kills: runs, gone, twice, others, stale, mostLost } = figures;
  return { ...figures, runs, failures: gone + twice + others + stale + Math.max(0, mostLost - 1) };
}

/** A number of sentences, different for each seed. */
function textOf(seed: number): string {
  const roll = dice(seed),
    words = "gate keeper stake sheep dusk count seven shut open tall wall under north rain".split(" ");
  return Array.from({ length: 70 }, () => words[roll(words.length)]).join(" ");
}

async function answers(): Promise<Figures> {
  const prompts = many(200), softTokens = randomSoftTokens(model.config);
  let runs = 0, failures = 0, tokens = 0;
  for (const { name: policy } of policies) {
    // One that keeps what scores enough has no budget.
    for (const keep of policy === "kvzap" ? [undefined] : ["10%", "25%", "50%", "100%"]) {
      for (let prompt = 0; prompt < prompts; prompt++) {
        const given = policy === "judge-q" ? { softTokens } : {};
        using context = await openContext(model, textOf(prompt), { policy, keep, ...given });
        const before = await context.ask(`${QUESTION} ${prompt}`, ASK), bytes = await savedBytes(context);
        using restored = await model.restore(bytesSource(bytes));
        const after = await restored.ask(`${QUESTION} ${prompt}`, ASK);
        runs++;
        tokens += after.ids.length;
        if (`${after.ids}` !== `${before.ids}` || restored.reused !== context.tokens) failures++;
      }
    }
  }
  return { runs, failures, tokens };
}

async function fuzz(): Promise<Figures> {
  const small = await snapshotOf(model, { policy: "snapkv", keep: "5%", cacheType: "int8", explain: true });
  await readHeader(bytesSource(small), model);
  const figures = await fuzzSnapshots(small, model, { inputs: many(100_000), seed: SEED, restoreEach: 20 });
  const { inputs: runs, refused, taken, failures, slowestMs } = figures;
  return { runs, failures: failures.length, refused, taken, slowestMs };
}

const CHECKS: Readonly<Record<string, () => Promise<Figures>>> = {
  C2: fuzz,
  C4: damage,
  C5: session,
  C6: kills,
  "C6-eval": evalKills,
  C10: answers,
};

const wanted = positionals.length > 0 ? positionals : Object.keys(CHECKS);
console.log(
  `snapshot of ${good.length} bytes, SHA-256 ${createHash("sha256").update(good).digest("hex").slice(0, 8)}…`,
);
let failed = false;
for (const id of wanted) {
  const start = performance.now(), { runs, failures, ...more } = await CHECKS[id]();
  failed ||= failures > 0;
  const ms = Math.round(performance.now() - start), { peakRssBytes: peakRss } = runtime.memory();
  console.log(JSON.stringify({ id, runs, failures, seed: SEED, ms, peak_rss: peakRss, ...more }));
}
await model[Symbol.asyncDispose]();
process.exit(failed ? 1 : 0);
