/** The file itself, with sections of no meaning. */
import assert from "node:assert/strict";
import { currentRuntime } from "../../../runtime/mod.ts";
import { type ByteSink, MemorySink } from "../../../model/snapshot/bytes.ts";
import { openSnapshot, type SectionSpec, snapshotBytes, writeSnapshot } from "../../../model/snapshot/format.ts";
import { parseSafetensors } from "../../../model/file/safetensors.ts";
import { bytesSource } from "../../_helper/snapshots.ts";

const runtime = await currentRuntime(), newHash = () => runtime.sha256();
const open = (bytes: Uint8Array<ArrayBuffer>) => openSnapshot(bytesSource(bytes), newHash);

/** A section of one tensor of bytes. */
function section(name: string, bytes: Uint8Array, said = bytes.length): SectionSpec {
  const tensors = [{ name: "bytes", dtype: "U8", shape: [said] }] as const;
  return { name, tensors, bytes: () => Promise.resolve([bytes]) };
}

async function written(sections: readonly SectionSpec[], metadata: Record<string, string> = {}) {
  const sink = new MemorySink();
  await writeSnapshot(sink, metadata, sections, newHash);
  return sink.bytes();
}

Deno.test("sections of many chunks, of none, and headers of any length come back", async () => {
  const large = new Uint8Array(9 * 2 ** 20 + 17).map((_, i) => i * 31 >> 3), empty = new Uint8Array(0);
  const sections = [section("a", large), section("b.c", empty), section("d", Uint8Array.of(7))];
  const metadata = { long: "x".repeat(100_000), "": "é" }, bytes = await written(sections, metadata);
  assert.equal(bytes.length, snapshotBytes(metadata, sections));
  const file = await open(bytes);
  assert.deepEqual([file.sections, file.size], [["a", "b.c", "d"], bytes.length]);
  assert.equal(file.metadata.get("long")!.length, 100_000);
  for (const { name, bytes: content } of sections) {
    const tensor = (await file.read(name)).get("bytes")!;
    assert.deepEqual([tensor.dtype, tensor.bytes], ["U8", (await content())[0]]);
  }
  assert.equal(parseSafetensors(bytes, "x").tensors.size, 4, "and any reader of safetensors takes it");
  await assert.rejects(file.read("e"), { code: "snapshot.layout", where: "e" });
  assert.throws(() => file.layout("e"), { code: "snapshot.layout" });
  for (const at of [bytes.length - 3000, bytes.length - 6 * 2 ** 20]) {
    const damaged = bytes.slice();
    damaged[at] ^= 1;
    await assert.rejects(open(damaged).then((each) => each.read("a")), { code: "snapshot.damaged", where: "a" });
  }
});

Deno.test("a section that is not as it said, or a sink that fails, ends in nothing", async () => {
  const ended: string[] = [];
  const sink = (fails: string): ByteSink => ({
    write: () => fails === "write" ? Promise.reject(new Error("no room")) : Promise.resolve(),
    commit: () => Promise.reject(new Error("no commit")),
    abort: () => Promise.resolve(void ended.push(fails)),
  });
  const bytes = Uint8Array.of(1, 2, 3);
  const wrong: [SectionSpec, RegExp][] = [
    [section("a", bytes, 4), /a\.bytes has 3 bytes: want 4/],
    [{ ...section("a", bytes), bytes: () => Promise.resolve([]) }, /Section a: 0 tensors/],
    [{ ...section("a", bytes), bytes: () => Promise.reject(new Error("lost")) }, /lost/],
  ];
  for (const [spec, message] of wrong) await assert.rejects(writeSnapshot(sink("read"), {}, [spec], newHash), message);
  await assert.rejects(writeSnapshot(sink("write"), {}, [section("a", bytes)], newHash), /no room/);
  await assert.rejects(writeSnapshot(sink("commit"), {}, [section("a", bytes)], newHash), /no commit/);
  await assert.rejects(writeSnapshot(sink("long"), { x: "y".repeat(5e6) }, [], newHash), /header of \d+ bytes/);
  assert.deepEqual(ended, ["read", "read", "read", "write", "commit", "long"]);
});

/** A file with this header and no data. */
function headed(text: string, length = text.length): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8 + text.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(new TextEncoder().encode(text), 8);
  return bytes;
}

Deno.test("headers that are none are refused before anything is made for them", async () => {
  const meta = '{"__metadata__":{"palisade_snapshot":"1"}',
    entry = (name: string, end: number) => `,"${name}":{"dtype":"U8","shape":[${end}],"data_offsets":[0,${end}]}`;
  const cases: [string, Uint8Array<ArrayBuffer>][] = [
    ["kind", headed("[]")],
    ["kind", headed("{}")],
    ["kind", headed('{"__metadata__":7}')],
    ["kind", headed('{"__metadata__":{"toString":"1"}}')],
    ["version", headed('{"__metadata__":{"palisade_snapshot":["1"]}}')],
    ["header", headed("{", 1)],
    ["header", headed("{}", 2 ** 40)],
    ["size", headed("{}", 1000)],
    ["header", headed(`${meta}}`)],
    ["header", headed(`${meta} }`)],
    ["header", headed(`${meta.slice(0, -1)},"a":"1","a":"2"}}`)],
    ["header", headed(`${meta}${entry("a.b", 0)}}`)],
    ["header", headed(`${meta}${entry("manifest.sha256", 0)}}`)],
    ["header", headed(`${meta}${entry("manifest.sha256", 0)}${entry("manifest.more", 0)}}`)],
    ["header", headed(`${meta},"a.b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}}`)],
    ["header", headed(`${meta},"a.b":{"dtype":"U8","shape":[9e15,9e15],"data_offsets":[0,1]}}`)],
    ["header", headed(`${meta},"__proto__":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`)],
    ["size", headed(`${meta}${entry("manifest.sha256", 64)}}`)],
  ];
  for (const [code, bytes] of cases) {
    const shown = new TextDecoder().decode(bytes.subarray(8));
    await assert.rejects(open(bytes), { code: `snapshot.${code}`, where: "header" }, shown);
  }
  const invalid = headed(`${meta}}`);
  invalid[12] = 0xff;
  await assert.rejects(open(invalid), { code: "snapshot.header", message: /UTF-8/ });
});
