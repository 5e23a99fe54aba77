import assert from "node:assert/strict";
import type { PalisadeError } from "../../../core/errors.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import { openSnapshot } from "../../../model/snapshot/format.ts";
import { openContext } from "../../../model/session.ts";
import { ASK, bytesSource, QUESTION, snapshotModel, snapshotOf } from "../../_helper/snapshots.ts";
import { roundTrip } from "../../_helper/snapshot_trip.ts";
import { cutChunks, flips, headerEnd, resealed, rewritten } from "../../_helper/snapshot_damage.ts";

const runtime = await currentRuntime();
const model = await snapshotModel();
const POLICY = { policy: "defensive", keep: "25%", cacheType: "f16" } as const;
const good = await snapshotOf(model, POLICY);

type Bytes = Uint8Array<ArrayBuffer>;

/** Why these bytes are refused: they must be, by type, at a named place. */
async function refusal(bytes: Bytes, options = {}): Promise<PalisadeError> {
  const start = performance.now();
  try {
    (await model.restore(bytesSource(bytes), options))[Symbol.dispose]();
  } catch (error) {
    const { name, code, where } = error as PalisadeError;
    assert.equal(name, "PalisadeError", `${error}`);
    assert.ok(code.startsWith("snapshot.") && where !== "", `${code} ${where}`);
    assert.ok(performance.now() - start < 2000, "within a moment");
    return error as PalisadeError;
  }
  throw new assert.AssertionError({ message: "it was not refused" });
}

Deno.test("C4: a flipped bit anywhere is refused, and the damaged part is named", async () => {
  const { places } = await flips(good, runtime);
  for (const { at, part } of places) {
    const bytes = good.slice();
    bytes[at] ^= 1 << at % 8;
    const { where } = await refusal(bytes);
    assert.equal(where, part, `byte ${at}`);
  }
});

Deno.test("C4: a file cut anywhere, lengthened, of two files, or with chunks exchanged is refused", async () => {
  const step = Math.ceil(good.length / 300);
  for (let length = 0; length < good.length; length += length < 300 ? 7 : step) {
    const { code } = await refusal(good.slice(0, length));
    assert.match(code, /^snapshot\.(size|kind)$/, `${length} bytes`);
  }
  const longer = new Uint8Array(good.length + 1);
  longer.set(good);
  assert.equal((await refusal(longer)).code, "snapshot.size");
  const other = await snapshotOf(model, POLICY, { text: `${"Another text of the same length, almost. ".repeat(9)}` });
  for (const half of [headerEnd(good), good.length >> 1]) {
    const spliced = good.slice();
    spliced.set(other.subarray(half, good.length), half);
    if (other.length >= good.length) await refusal(spliced);
  }
  for (const exchanged of await cutChunks(good, runtime)) {
    assert.equal((await refusal(exchanged)).code, "snapshot.damaged");
  }
});

Deno.test("C5: what was refused leaves the session as it was", async () => {
  using context = await openContext(model, "The gate was shut at nine and nobody came. ".repeat(6), { keep: "50%" });
  const control = await context.ask(QUESTION, ASK), bytes = model.backend.memory().allocatedBytes;
  for (let at = 3; at < good.length; at += Math.ceil(good.length / 40)) {
    const damaged = good.slice();
    damaged[at] ^= 0x40;
    await refusal(damaged);
    assert.equal(model.backend.memory().allocatedBytes, bytes, "no row is left behind");
    assert.deepEqual((await context.ask(QUESTION, ASK)).ids, control.ids);
  }
});

Deno.test("a file of another kind, of another version, or whose header says other things is refused", async () => {
  const text = (words: string) => new TextEncoder().encode(words);
  for (
    const bytes of [new Uint8Array(0), text("GGUF"), text("A text of more than eight bytes"), new Uint8Array(4096)]
  ) {
    assert.equal((await refusal(bytes as Bytes)).code, "snapshot.kind");
  }
  const resigned = (change: (header: Record<string, unknown>) => void) => rewritten(good, change);
  type Meta = { __metadata__: Record<string, string> };
  const meta = (change: (meta: Record<string, string>) => void) =>
    resigned((header) => change((header as unknown as Meta).__metadata__));
  type State = Record<string, unknown> & { ms: Record<string, unknown>; budget: Record<string, unknown> };
  const state = (change: (state: State) => void) =>
    meta((each) => {
      const value = JSON.parse(each.state);
      change(value);
      each.state = JSON.stringify(value);
    });
  const cases: [string, Bytes][] = [
    ["snapshot.version", meta((each) => each.palisade_snapshot = "2")],
    ["snapshot.kind", meta((each) => delete each.palisade_snapshot)],
    ["snapshot.state", meta((each) => each.state = "{")],
    ["snapshot.state", meta((each) => each.state = "[]")],
    ["snapshot.state", meta((each) => delete each.identity)],
    ["snapshot.state", meta((each) => each.identity = '[["engine","1"]]')],
    ["snapshot.header", resigned((header) => (header.__metadata__ as Record<string, unknown>).more = 7)],
    ["snapshot.state", state((each) => each.tokens = -1)],
    ["snapshot.state", state((each) => each.tokens = 2 ** 60)],
    ["snapshot.state", state((each) => each.tokens = "many")],
    ["snapshot.state", state((each) => each.seen = 5)],
    ["snapshot.state", state((each) => each.keepCapped = 0)],
    ["snapshot.state", state((each) => each.markers = [3, 2])],
    ["snapshot.state", state((each) => each.markers = [-1])],
    ["snapshot.state", state((each) => each.lead = [1, 2])],
    ["snapshot.state", state((each) => each.made = null)],
    ["snapshot.state", state((each) => each.label = 3)],
    ["snapshot.state", state((each) => each.ms.evict = "soon")],
    ["snapshot.state", state((each) => each.budget.total = 2 ** 60)],
    ["snapshot.state", state((each) => each.policy = "no-such-policy")],
    ["snapshot.state", state((each) => each.risk = { kind: "mean", limit: 0.1 })],
    ["snapshot.state", state((each) => each.risk = { kind: "worst", limit: 0.1, worstCase: {} })],
    ["snapshot.identity", state((each) => each.frame = { name: "custom", text: "{text} or {question}" })],
    ["snapshot.state", state((each) => each.frame = { name: "custom", text: "no places" })],
    ["snapshot.header", resigned((header) => (header["layer.0.keys"] as { dtype: string }).dtype = "F8")],
    ["snapshot.header", resigned((header) => (header["layer.0.keys"] as { shape: number[] }).shape[0]--)],
    ["snapshot.header", resigned((header) => delete header["layer.1.values"])],
    ["snapshot.size", resigned((header) => delete header["manifest.sha256"])],
  ];
  for (const [i, [code, bytes]] of cases.entries()) {
    assert.equal((await refusal(bytes)).code, code, `case ${i}: ${(await refusal(bytes)).message}`);
  }
});

Deno.test("rows, lengths and positions that can't be are refused though every hash holds", async () => {
  const ints = (change: (numbers: DataView) => void, name: string) =>
    resealed(good, (data, header) => {
      const { data_offsets: [from, to] } = header[name] as { data_offsets: [number, number] };
      change(new DataView(data.buffer, data.byteOffset + from, to - from));
    });
  const cases: [string, Bytes][] = [
    ["layer.0", ints((view) => view.setInt32(0, -1, true), "layer.0.lengths")],
    ["layer.0", ints((view) => view.setInt32(0, view.getInt32(0, true) + 1, true), "layer.0.lengths")],
    ["layer.1", ints((view) => view.setInt32(4, view.getInt32(0, true), true), "layer.1.positions")],
    ["layer.1", ints((view) => view.setInt32(0, 2 ** 30, true), "layer.1.positions")],
    ["layer.1", ints((view) => view.setInt32(0, -5, true), "layer.1.positions")],
    ["prefixes", ints((view) => view.setInt32(0, 10 ** 6, true), "prefixes.lengths")],
  ];
  for (const [where, bytes] of cases) {
    const error = await refusal(bytes);
    assert.deepEqual([error.code, error.where], ["snapshot.layout", where]);
  }
  const infinite = ints((view) => view.setUint16(0, 0x7c00, true), "layer.0.keys");
  await assert.rejects(model.restore(bytesSource(infinite)), { code: "cache-type.range" });
});

Deno.test("sections that don't hold what they should are refused by name", async () => {
  const reshaped = (name: string, dtype: string, shape: number[]) =>
    rewritten(good, (header) => Object.assign(header[name] as object, { dtype, shape }));
  const file = await openSnapshot(bytesSource(good), () => runtime.sha256());
  const [rows, width] = file.layout("layer.0").get("keys")!.shape;
  const renamed = (from: string, to: string) =>
    rewritten(good, (header) => {
      const entries = Object.entries(header).map(([name, value]) => [name === from ? to : name, value]);
      for (const name of Object.keys(header)) delete header[name];
      Object.assign(header, Object.fromEntries(entries));
    });
  const cases: [string, string, Bytes][] = [
    ["snapshot.layout", "layer.0", reshaped("layer.0.keys", "BF16", [rows, width])],
    ["snapshot.layout", "layer.0", reshaped("layer.0.keys", "F16", [width, rows])],
    ["snapshot.layout", "layer.0", renamed("layer.0.values", "layer.0.bias")],
    ["snapshot.layout", "layer.1", renamed("layer.1.keys", "layer.1.Keys")],
    ["snapshot.layout", "prefixes", renamed("prefixes.hashes", "prefixes.other")],
    ["snapshot.header", "header", renamed("layer.1.keys", "layer.0.keys2")],
    ["snapshot.header", "header", renamed("layer.1.values", "weather.values")],
  ];
  for (const [wanted, place, bytes] of cases) {
    const { code, where } = await refusal(bytes);
    assert.deepEqual([code, where], [wanted, place]);
  }
});

/** The same bytes, the numbers of one tensor changed and every hash made again. */
function changed(bytes: Bytes, name: string, change: (numbers: DataView) => void): Promise<Bytes> | Bytes {
  return resealed(bytes, (data, header) => {
    const { data_offsets: [from, to] } = header[name] as { data_offsets: [number, number] };
    change(new DataView(data.buffer, data.byteOffset + from, to - from));
  });
}

Deno.test("rows of four bits come back, and are refused where they don't fit their heads", async () => {
  for (const cacheType of ["int4", "k=int4,v=int8", "k=f16,v=int4"] as const) {
    await roundTrip(model, { policy: "defensive", keep: "60%", cacheType }, cacheType);
  }
  const packed = await snapshotOf(model, { policy: "defensive", keep: "60%", cacheType: "int4" });
  const cases: [string, (view: DataView) => void][] = [
    ["layer.0.packed", (view) => view.setInt32(0, -1, true)],
    ["layer.0.packed", (view) => view.setInt32(0, 2 ** 20, true)],
    ["layer.1.packed", (view) => view.setInt32(0, 0, true)],
    ["layer.1.key_steps", (view) => view.setUint16(0, 0x7c00, true)],
    ["layer.0.value_zeros", (view) => view.setUint16(0, 0x7e00, true)],
  ];
  for (const [name, change] of cases) {
    const { code, where } = await refusal(await changed(packed, name, change));
    assert.deepEqual([code, where], ["snapshot.layout", name.slice(0, name.lastIndexOf("."))], name);
  }
});

Deno.test("keys that have lost channels come back, and are refused where channels don't fit their heads", async () => {
  const thin = { policy: "defensive(key-channels=60%)", keep: "60%" };
  await roundTrip(model, thin, "key channels");
  const bytes = await snapshotOf(model, thin);
  const cases: [string, (view: DataView) => void][] = [
    ["layer.0.channels", (view) => view.setInt32(0, 2, true)],
    ["layer.0.thinned", (view) => view.setInt32(0, -1, true)],
    ["layer.1.thinned", (view) => view.setInt32(0, 2 ** 20, true)],
    ["layer.1.reading", (view) => view.setInt32(0, -4, true)],
  ];
  for (const [name, change] of cases) {
    const { code, where } = await refusal(await changed(bytes, name, change));
    assert.deepEqual([code, where], ["snapshot.layout", name.slice(0, name.lastIndexOf("."))], name);
  }
});
