/** Eviction on a dump that is read layer by layer. */
import assert from "node:assert/strict";
import { certifyDump } from "../../core/dump/certify.ts";
import { evictDump, type LayerDump } from "../../core/dump/evict.ts";
import {
  type DumpLayers,
  type EvictedLayer,
  evictLayers,
  type EvictOptions,
  type LayerWants,
} from "../../core/dump/layers.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { meanLargestMass } from "../../core/worst_case/certificate.ts";
import { type DumpCase, makeDump } from "../_helper/dumps.ts";

const SIZES = { length: 150, kvHeads: 2, group: 2, layers: 3 };
/** By name; `headkv` reads a file. */
const NAMES = [...policies.map(({ name }) => name).filter((name) => name !== "headkv"), "snapkv@reference"];

/** Layers in memory, and what they were read for. */
class Layers implements DumpLayers {
  readonly reads: LayerWants[] = [];
  readonly #dump: DumpCase;
  held = 0;

  constructor(dump: DumpCase) {
    this.#dump = dump;
  }

  get shape() {
    return this.#dump.shape;
  }

  get length() {
    return this.#dump.length;
  }

  get layers() {
    return this.#dump.layers.length;
  }

  read(layer: number, wants: LayerWants): Promise<LayerDump> {
    this.reads.push(wants);
    return Promise.resolve(this.#dump.layers[layer]);
  }
}

async function all(policy: string, layers: DumpLayers, options: EvictOptions): Promise<EvictedLayer[]> {
  return await Array.fromAsync(evictLayers(resolvePolicy(policy), layers, options));
}

function plain(kept: readonly (readonly Int32Array[])[]): number[][][] {
  return kept.map((heads) => heads.map((head) => [...head]));
}

for (const name of NAMES) {
  Deno.test(`evictLayers() keeps what evictDump() keeps and certifies it, with ${name}`, async () => {
    const dump = makeDump(7, SIZES), keep = { fraction: 0.3 };
    const whole = evictDump(name, keep, dump.shape, dump.layers), certificates = certifyDump(whole, dump.layers);
    const layers = new Layers(dump), seen: number[] = [];
    const found = await all(name, layers, { keep, explain: true, onLayer: (done) => seen.push(done) });
    assert.deepEqual(plain(found.map(({ kept }) => kept)), plain(whole.kept));
    assert.deepEqual(found.map(({ certificate }) => certificate), certificates);
    assert.deepEqual(found.map(({ layer }) => layer), [0, 1, 2]);
    assert.equal(seen.length, layers.reads.length);
    const quick = new Layers(dump);
    assert.deepEqual(plain((await all(name, quick, { keep })).map(({ kept }) => kept)), plain(whole.kept));
    assert.ok(quick.reads.length <= 3, "a layer is read once");
  });
}

for (const name of ["snapkv", "layer-defensive", "cake", "streaming-llm", "keydiff"]) {
  Deno.test(`evictLayers() finds the smallest budget that holds a risk, with ${name}`, async () => {
    const dump = makeDump(11, SIZES), risk = 0.15;
    const found = await all(name, new Layers(dump), { risk, explain: true });
    const reached = meanLargestMass(found.map(({ certificate }) => certificate!));
    assert.ok(reached <= risk, `${reached}`);
    const tokens = found.reduce((sum, { kept }) => sum + kept.reduce((n, head) => n + head.length, 0), 0) / 6;
    assert.ok(tokens < SIZES.length, "something is evicted");
    const policy = resolvePolicy(name), least = Math.max(1, policy.sinks + policy.window);
    assert.ok(tokens >= least);
    if (tokens === least) return;
    const less = evictDump(name, { tokens: tokens - 1 }, dump.shape, dump.layers);
    assert.ok(meanLargestMass(certifyDump(less, dump.layers)) > risk, "one token less would not do");
  });
}

Deno.test("evictLayers() keeps all where a risk allows nothing, or nothing can go", async () => {
  const dump = makeDump(3, SIZES), short = makeDump(3, { ...SIZES, length: 20 });
  for (const [name, each] of [["full", dump], ["snapkv", short]] as const) {
    const found = await all(name, new Layers(each), { risk: 0.01 });
    assert.ok(found.every(({ kept }) => kept.every(({ length }) => length === each.length)));
  }
  const whole = await all("snapkv", new Layers(dump), {});
  assert.ok(whole.every(({ kept }) => kept.every(({ length }) => length === dump.length)), "no keep is all");
});

Deno.test("evictLayers() runs its work where it is told to, and stops when it is", async () => {
  const dump = makeDump(5, SIZES), stop = new AbortController();
  let held = 0;
  const hold = <T>(work: () => T): T => {
    held++;
    return work();
  };
  await all("layer-defensive", new Layers(dump), { keep: { tokens: 60 }, explain: true, hold });
  // A layer is measured for the policy; its certificate by window and two members' norms, and then put together.
  assert.equal(held, 3 * (1 + 3 + 1));
  const layers = evictLayers(resolvePolicy("snapkv"), new Layers(dump), { keep: { tokens: 60 }, signal: stop.signal });
  await layers.next();
  stop.abort(new Error("enough"));
  await assert.rejects(layers.next(), /enough/);
});
