import assert from "node:assert/strict";
import { zipSync } from "fflate";
import { zipEntry } from "../../model/store/zip.ts";
import { bufferSource } from "../../runtime/sources.ts";
import { seededBytes } from "../_helper/store.ts";

const DATA = seededBytes(5, 200_000);

/** Three entries, the middle one is wanted; it has an extra field. */
function sample(level: 0 | 6, data = DATA): Uint8Array<ArrayBuffer> {
  const zip = zipSync({
    "a.txt": new Uint8Array(7),
    "dir/b.bin": [data, { level, extra: { 0x7075: new Uint8Array(11) } }],
    "c.txt": new Uint8Array(9),
  });
  return new Uint8Array(zip);
}

async function unzip(zip: Uint8Array<ArrayBuffer>, name = "dir/b.bin"): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for await (const piece of zipEntry(bufferSource(zip, "sample.whl"), name)) pieces.push(piece);
  return new Uint8Array(await new Blob(pieces as Uint8Array<ArrayBuffer>[]).arrayBuffer());
}

/** Position of the last occurrence of a little-endian signature. */
function find(zip: Uint8Array, signature: number): number {
  const view = new DataView(zip.buffer);
  for (let at = zip.length - 4; at >= 0; at--) if (view.getUint32(at, true) === signature) return at;
  assert.fail("no such signature");
}

for (const level of [0, 6] as const) {
  Deno.test(`zipEntry() reads ${level ? "deflated" : "stored"} entries of any length`, async () => {
    for (const length of [0, 1, 65_535, 65_536, 65_537, 200_000]) {
      assert.deepEqual(await unzip(sample(level, DATA.slice(0, length))), DATA.slice(0, length), `${length} bytes`);
    }
    const zeros = new Uint8Array(3_000_000);
    assert.deepEqual(await unzip(sample(level, zeros)), zeros);
  });
}

Deno.test("zipEntry() finds the end record behind a comment", async () => {
  const zip = sample(6);
  const commented = new Uint8Array(zip.length + 1000).fill(0x50);
  commented.set(zip);
  new DataView(commented.buffer).setUint16(find(zip, 0x06054b50) + 20, 1000, true);
  assert.deepEqual(await unzip(commented), DATA);
});

Deno.test("zipEntry() refuses a missing entry by name", async () => {
  await assert.rejects(unzip(sample(6), "dir/nothing"), /sample\.whl holds no dir\/nothing/);
});

Deno.test("zipEntry() refuses what is no zip, and one cut anywhere", async () => {
  await assert.rejects(unzip(new Uint8Array(0)), /no end record/);
  await assert.rejects(unzip(seededBytes(6, 100_000)), /no end record/);
  const zip = sample(6);
  for (const keep of [1, 21, 100, zip.length >> 1, zip.length - 100, zip.length - 1]) {
    await assert.rejects(unzip(zip.slice(0, keep)), /no end record/, `${keep} bytes`);
  }
});

Deno.test("zipEntry() refuses damaged fields, each in turn", async () => {
  const end = find(sample(6), 0x06054b50);
  const start = new DataView(sample(6).buffer).getUint32(end + 16, true);
  // The directory's second entry: 46 bytes and the 5 of "a.txt" after its start.
  const entry = start + 51;
  const cases: [string, number, 2 | 4, number, RegExp][] = [
    ["directory length", end + 12, 4, 0xffffffff, /directory does not fit/],
    ["directory offset", end + 16, 4, 0xfffffff0, /directory does not fit/],
    ["entry count", end + 10, 2, 0, /holds no/],
    ["entry signature", entry, 4, 0, /holds no/],
    ["method", entry + 10, 2, 12, /method 12/],
    ["encryption flag", entry + 8, 2, 1, /holds no/],
    ["compressed length", entry + 20, 4, 0xfffffff0, /runs past the end/],
    ["local offset", entry + 42, 4, 0xfffffff0, /lies past the end/],
    ["local offset", entry + 42, 4, 3, /has no header/],
  ];
  for (const [field, at, width, value, message] of cases) {
    const zip = sample(6);
    const view = new DataView(zip.buffer);
    if (width === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    await assert.rejects(unzip(zip), message, field);
  }
});
