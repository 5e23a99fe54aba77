import assert from "node:assert/strict";
import { refusalOf } from "../../_helper/refusal.ts";
import fc from "fast-check";
import { type ByteSink, MemorySink } from "../../../model/snapshot/bytes.ts";
import { keySecret, newKeyFile, passphraseSecret } from "../../../model/snapshot/seal/key.ts";
import { isSealed, openSealed, sealedSize, sealSink, type Secret } from "../../../model/snapshot/seal/seal.ts";
import { bufferSource } from "../../../runtime/mod.ts";
import { holdsAsync } from "../../_helper/property.ts";

const KEY = keySecret(Uint8Array.from({ length: 32 }, (_, i) => i)), OTHER = keySecret(new Uint8Array(32).fill(9));
/** So cheap that a test can try many; the default is tried once. */
const CHEAP = { logN: 4, r: 1, p: 1 };
const CHUNK = 4096, HEADER = 96, STRIDE = CHUNK + 16;

function noise(length: number, seed = 1): Uint8Array<ArrayBuffer> {
  let state = seed;
  return Uint8Array.from({ length }, () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24);
}

async function sealed(plain: Uint8Array, secret: Secret = KEY, portion = 1000): Promise<Uint8Array<ArrayBuffer>> {
  const memory = new MemorySink(), sink = await sealSink(memory, secret, { chunkBytes: CHUNK, cost: CHEAP });
  for (let at = 0; at < plain.length; at += portion) await sink.write(plain.subarray(at, at + portion));
  await sink.commit();
  return memory.bytes();
}

async function opened(bytes: Uint8Array<ArrayBuffer>, secret: Secret = KEY): Promise<Uint8Array> {
  const source = await openSealed(bufferSource(bytes, "a"), secret);
  return await source.read(0, source.size);
}

Deno.test("sealed bytes of every length come back, whole and in ranges", async () => {
  for (const length of [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17]) {
    const plain = noise(length), bytes = await sealed(plain);
    assert.equal(bytes.length, sealedSize(length, CHUNK));
    assert.ok(await isSealed(bufferSource(bytes)));
    const source = await openSealed(bufferSource(bytes), KEY);
    assert.equal(source.size, length);
    for (const from of [0, 1, CHUNK - 1, CHUNK, length - 1, length]) {
      if (from < 0 || from > length) continue;
      for (const to of [from, from + 1, from + CHUNK, length]) {
        if (to <= length) assert.deepEqual(await source.read(from, to - from), plain.slice(from, to));
      }
    }
    await assert.rejects(source.read(length, 1), RangeError);
    await assert.rejects(source.read(-1, 1), RangeError);
    await assert.rejects(source.read(0.5, 1), RangeError);
    await source.close();
  }
});

Deno.test("ranges that are read at the same time don't mix", async () => {
  const plain = noise(8 * CHUNK), source = await openSealed(bufferSource(await sealed(plain)), KEY);
  const at = Array.from({ length: 40 }, (_, i) => (i * 5077) % (7 * CHUNK));
  const parts = await Promise.all(at.map((offset) => source.read(offset, CHUNK)));
  parts.forEach((part, i) => assert.deepEqual(part, plain.slice(at[i], at[i] + CHUNK)));
});

Deno.test("the same bytes sealed twice have nothing in common, nor with the plain text", async () => {
  const plain = new Uint8Array(3 * CHUNK), [first, second] = [await sealed(plain), await sealed(plain)];
  const equal = first.slice(HEADER).filter((byte, i) => byte === second[HEADER + i]).length;
  assert.ok(equal < first.length / 100, `${equal} bytes are equal`);
  for (let i = HEADER; i + 8 <= first.length; i += 8) {
    assert.ok(first.subarray(i, i + 8).some((byte) => byte !== 0), "eight zeros, as in the plain text");
  }
});

Deno.test("a wrong secret, or one of the other kind, is refused as such before any chunk is read", async () => {
  const bytes = await sealed(noise(2 * CHUNK)), phrase = passphraseSecret("seventeen stakes");
  assert.equal(await refusalOf(opened(bytes, OTHER)), "seal.key seal.header");
  assert.equal(await refusalOf(opened(bytes, phrase)), "seal.secret-kind seal.header");
  const worded = await sealed(noise(10), phrase);
  assert.deepEqual(await opened(worded, phrase), noise(10));
  assert.equal(await refusalOf(opened(worded, passphraseSecret("seventeen stake"))), "seal.key seal.header");
  assert.equal(await refusalOf(opened(worded, KEY)), "seal.secret-kind seal.header");
  const read: number[] = [], inner = bufferSource(bytes);
  const watched = {
    ...inner,
    name: "a",
    size: inner.size,
    read: (o: number, n: number) => (read.push(o + n), inner.read(o, n)),
  };
  await refusalOf(openSealed(watched, OTHER));
  assert.ok(read.every((end) => end <= HEADER), `read up to ${Math.max(...read)}`);
});

Deno.test("the default cost of a passphrase is what the file says and works", async () => {
  const memory = new MemorySink(), phrase = passphraseSecret("ﬁve"), sink = await sealSink(memory, phrase);
  await sink.write(noise(5));
  await sink.commit();
  const view = new DataView(memory.bytes().buffer);
  assert.deepEqual([16, 20, 24].map((at) => view.getUint32(at, true)), [17, 8, 1]);
  // The ligature and the two letters are the same passphrase.
  assert.deepEqual(await opened(memory.bytes(), passphraseSecret("five")), noise(5));
});

Deno.test("every flipped bit is refused, and names the part it is in", async () => {
  const plain = noise(2 * CHUNK + 100), bytes = await sealed(plain);
  const flip = (at: number, bit: number) => {
    const changed = bytes.slice();
    changed[at] ^= 1 << bit;
    return changed;
  };
  for (let at = 0; at < HEADER; at++) {
    for (const bit of [0, 3, 7]) assert.match(await refusalOf(opened(flip(at, bit))), /^seal\.\w+ seal\.header$/);
  }
  for (let at = HEADER; at < bytes.length; at += 97) {
    const where = Math.floor((at - HEADER) / STRIDE);
    assert.equal(await refusalOf(opened(flip(at, at % 8))), `seal.damaged seal.chunk[${where}]`);
  }
});

Deno.test("a file that is cut anywhere, or longer, is refused when it is opened", async () => {
  const bytes = await sealed(noise(2 * CHUNK + 100));
  const lengths = [
    0,
    7,
    8,
    HEADER,
    HEADER + 15,
    HEADER + 16,
    HEADER + STRIDE,
    HEADER + STRIDE + 16,
    HEADER + 2 * STRIDE,
  ];
  for (let i = 1; i < bytes.length; i += 211) lengths.push(i);
  for (const length of lengths) {
    const refusal = await refusalOf(openSealed(bufferSource(bytes.slice(0, length)), KEY));
    assert.match(refusal, /^seal\.(magic|truncated|damaged) seal\.(header|chunk\[\d\])$/, `${length} bytes`);
  }
  const longer = new Uint8Array(bytes.length + 5000);
  longer.set(bytes);
  assert.match(await refusalOf(openSealed(bufferSource(longer), KEY)), /^seal\.damaged seal\.chunk/);
  assert.equal(
    await refusalOf(openSealed(bufferSource(longer.slice(0, bytes.length + 1)), KEY)),
    "seal.damaged seal.chunk[2]",
  );
});

Deno.test("chunks in another order, or from another file of the same key, are refused", async () => {
  const bytes = await sealed(noise(3 * CHUNK)), other = await sealed(noise(3 * CHUNK));
  const chunk = (of: Uint8Array, i: number) => of.slice(HEADER + i * STRIDE, HEADER + (i + 1) * STRIDE);
  const swapped = bytes.slice();
  swapped.set(chunk(bytes, 1), HEADER);
  swapped.set(chunk(bytes, 0), HEADER + STRIDE);
  assert.equal(await refusalOf(opened(swapped)), "seal.damaged seal.chunk[0]");
  for (const i of [0, 1, 2]) {
    const mixed = bytes.slice();
    mixed.set(chunk(other, i), HEADER + i * STRIDE);
    assert.equal(await refusalOf(opened(mixed)), `seal.damaged seal.chunk[${i}]`);
  }
  const headed = bytes.slice();
  headed.set(other.slice(0, HEADER));
  assert.equal(await refusalOf(opened(headed)), "seal.damaged seal.chunk[2]");
  // A middle chunk doesn't pass for the last one.
  assert.equal(await refusalOf(opened(bytes.slice(0, HEADER + 2 * STRIDE))), "seal.damaged seal.chunk[1]");
});

/** A header whose digest fits, whatever is in it. */
async function withHeader(bytes: Uint8Array, at: number, value: number): Promise<Uint8Array<ArrayBuffer>> {
  const changed = bytes.slice();
  new DataView(changed.buffer).setUint32(at, value, true);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", changed.slice(0, 80)));
  changed.set(digest.subarray(0, 16), 80);
  return changed;
}

Deno.test("a header that asks for what can't be is refused before anything is tried", async () => {
  const phrase = passphraseSecret("a"), worded = await sealed(noise(10), phrase), keyed = await sealed(noise(10));
  const code = async (bytes: Uint8Array, at: number, value: number, secret: Secret) =>
    await refusalOf(opened(await withHeader(bytes, at, value), secret));
  assert.equal(await code(keyed, 8, 2, KEY), "seal.version seal.header");
  assert.equal(await code(keyed, 12, 3, KEY), "seal.header seal.header");
  assert.equal(await code(keyed, 28, 11, KEY), "seal.header seal.header");
  assert.equal(await code(keyed, 28, 25, KEY), "seal.header seal.header");
  for (const [at, value] of [[16, 0], [16, 32], [16, 22], [20, 0], [20, 2 ** 31], [24, 0], [24, 5]]) {
    assert.equal(await code(worded, at, value, phrase), "seal.header seal.header", `${at}: ${value}`);
  }
  // What fits in itself, but is not what was sealed, looks like a wrong key: the tag covers it.
  assert.equal(await code(keyed, 28, 13, KEY), "seal.key seal.header");
});

Deno.test("a secret is a passphrase that is not empty, 32 bytes or 64 digits", () => {
  const text = newKeyFile();
  assert.match(text, /^[0-9a-f]{64}\n$/);
  assert.notEqual(text, newKeyFile());
  const bytes = new TextEncoder().encode(text), secret = keySecret(bytes);
  assert.ok(secret.kind === "key" && secret.bytes.length === 32);
  assert.deepEqual(keySecret(new TextEncoder().encode(`  ${text.toUpperCase()}\r\n`)), secret);
  for (const bad of [new Uint8Array(0), new Uint8Array(31), bytes.slice(1), new Uint8Array(10_000)]) {
    assert.throws(() => keySecret(bad, "my.key"), { code: "secret.key-file", where: "my.key" });
  }
  assert.throws(() => passphraseSecret(""), { code: "secret.empty" });
});

Deno.test("what a sink throws is passed on, and giving up gives up below", async () => {
  let given = 0, aborted = 0;
  const failing = (after: number): ByteSink => ({
    write: () => given++ < after ? Promise.resolve() : Promise.reject(new Error("full")),
    commit: () => Promise.resolve(),
    abort: () => Promise.resolve(void aborted++),
  });
  await assert.rejects(sealSink(failing(0), KEY), /full/);
  assert.equal(aborted, 1);
  given = 0;
  const sink = await sealSink(failing(1), KEY, { chunkBytes: CHUNK });
  await assert.rejects(sink.write(new Uint8Array(3 * CHUNK)), /full/);
  await sink.abort();
  assert.equal(aborted, 2);
});

Deno.test("no bytes are a sealed file by chance: 2,000 hostile ones end in a refusal", async () => {
  const good = await sealed(noise(CHUNK + 5));
  const edit = fc.record({ at: fc.nat(good.length - 1), value: fc.nat(255) });
  const hostile = fc.record({
    edits: fc.array(edit, { maxLength: 6 }),
    length: fc.nat(good.length + 40),
    headed: fc.boolean(),
  });
  await holdsAsync(
    fc.asyncProperty(hostile, async ({ edits, length, headed }) => {
      const bytes = new Uint8Array(length);
      if (headed) bytes.set(good.subarray(0, length));
      for (const { at, value } of edits) if (at < length) bytes[at] = value;
      if (bytes.length === good.length && bytes.every((byte, i) => byte === good[i])) return;
      assert.match(await refusalOf(opened(bytes)), /^seal\./);
    }),
    2000,
  );
});
