/** Snapshots that are sealed, cloaked, or both: what comes back, what is refused, and what can be found in the file. */
import assert from "node:assert/strict";
import { refusalOf } from "../../_helper/refusal.ts";
import { CACHE_TYPES } from "../../../core/cache/entry_type.ts";
import { openContext } from "../../../model/session.ts";
import { keySecret, passphraseSecret } from "../../../model/snapshot/seal/key.ts";
import type { SaveOptions } from "../../../model/snapshot/save.ts";
import { resealed, rewritten } from "../../_helper/snapshot_damage.ts";
import { ASK, bytesSource, cacheContent, QUESTION, savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";

const KEY = keySecret(new Uint8Array(32).fill(3)), OTHER = keySecret(new Uint8Array(32).fill(4));
const PHRASE = passphraseSecret("seventeen stakes");
const model = await snapshotModel();

const WAYS: readonly [name: string, save: SaveOptions][] = [
  ["sealed", { encrypt: KEY }],
  ["cloaked", { cloak: KEY }],
  ["sealed and cloaked", { encrypt: KEY, cloak: KEY }],
];

/** Most that two arrays differ by, as a share of the largest magnitude. */
function relative(a: Float32Array, b: Float32Array): number {
  const largest = a.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  return a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0) / largest;
}

Deno.test("a secret snapshot restores what was saved: sealed to the bit, cloaked to 1e-6, and answers alike", async () => {
  for (const cacheType of CACHE_TYPES) {
    const options = { policy: "layer-defensive", keep: "30%", cacheType } as const;
    using context = await openContext(model, TEXT, options);
    const answered = await context.ask(QUESTION, ASK), content = await cacheContent(context);
    for (const [name, save] of WAYS) {
      const bytes = await savedBytes(context, { ...save, withText: true });
      using restored = await model.restore(bytesSource(bytes), { secret: KEY });
      const again = await cacheContent(restored);
      if (name === "sealed") assert.deepEqual(again, content);
      else {
        content.content.forEach((head, i) => {
          assert.deepEqual(again.content[i].positions, head.positions);
          for (const side of ["keys", "values"] as const) {
            const off = relative(head[side], again.content[i][side]);
            assert.ok(off <= (cacheType === "f32" ? 1e-6 : 5e-5), `${name} ${cacheType}: ${off}`);
          }
        });
      }
      assert.deepEqual((await restored.ask(QUESTION, ASK)).ids, answered.ids, `${name} ${cacheType}`);
    }
  }
});

Deno.test("scores, certificates, moved positions and a text that is gone on with come back from a cloaked file", async () => {
  const scored = { policy: "defensive", keep: "50%", maxCache: { tokens: 60, rule: "gate" } } as const;
  for (const options of [scored, { policy: "defensive", keep: "40%", explain: true, positions: "rerotate" } as const]) {
    using context = await openContext(model, TEXT, options);
    const maxCache = "maxCache" in options ? options.maxCache : undefined;
    using restored = await model.restore(bytesSource(await savedBytes(context, { cloak: KEY })), {
      secret: KEY,
      maxCache,
    });
    assert.deepEqual(restored.certificates, context.certificates);
    assert.deepEqual((await restored.ask(QUESTION, ASK)).ids, (await context.ask(QUESTION, ASK)).ids);
  }
  using plain = await openContext(model, TEXT, { frame: "none", policy: "defensive", keep: "50%" });
  const bytes = await savedBytes(plain, { cloak: KEY });
  using gone = await model.restore(bytesSource(bytes), { secret: KEY });
  assert.deepEqual(gone.plan.lead, plain.plan.lead);
  assert.deepEqual((await gone.ask("", ASK)).ids, (await plain.ask("", ASK)).ids);
});

Deno.test("biases of refitted entries are masked in a cloaked file, and come back to the bit, also from rest", async () => {
  using context = await openContext(model, TEXT, { policy: "defensive", keep: "40%" });
  const { values } = await context.cache.rows(0).copyRows(1);
  const bias = Float32Array.from({ length: context.cache.length(0, 1) }, (_, i) => 0.25 + i / 7);
  context.cache.refit(0, 1, { values, bias });
  const bytes = await savedBytes(context, { cloak: KEY }), written = new Uint8Array(bias.buffer);
  assert.ok(holds(await savedBytes(context), written) && !holds(bytes, written));
  using restored = await model.restore(bytesSource(bytes), { secret: KEY });
  assert.deepEqual((await restored.cache.rows(0).copyRows(1)).bias, bias);
  using resting = await model.restore(bytesSource(bytes), { secret: KEY, cloak: true });
  assert.deepEqual((await resting.ask(QUESTION, ASK)).ids, (await restored.ask(QUESTION, ASK)).ids);
});

Deno.test("a text that grew is read on behind a secret snapshot, by the secret alone", async () => {
  const options = { policy: "defensive", keep: "50%" } as const;
  using context = await openContext(model, TEXT, options);
  for (const [name, save] of WAYS) {
    const snapshot = bytesSource(await savedBytes(context, save)), grown = TEXT.repeat(2);
    using more = await openContext(model, grown, { ...options, snapshot, secret: KEY });
    assert.ok(more.reused > 0, name);
    assert.match(await refusalOf(openContext(model, grown, { ...options, snapshot })), /^(seal|cloak)\.secret /);
  }
});

Deno.test("without the secret, with another, or one of another kind, it is refused with that reason", async () => {
  using context = await openContext(model, TEXT, { policy: "defensive", keep: "30%" });
  for (const [kind, save] of [["seal", { encrypt: KEY }], ["cloak", { cloak: KEY }]] as const) {
    const source = bytesSource(await savedBytes(context, save)), where = kind === "seal" ? "seal.header" : "header";
    assert.equal(await refusalOf(model.restore(source)), `${kind}.secret ${where}`);
    assert.equal(await refusalOf(model.restore(source, { secret: OTHER })), `${kind}.key ${where}`);
    assert.equal(await refusalOf(model.restore(source, { secret: PHRASE })), `${kind}.secret-kind ${where}`);
  }
  const worded = bytesSource(await savedBytes(context, { cloak: PHRASE }));
  using restored = await model.restore(worded, { secret: PHRASE });
  assert.equal(restored.reused, context.tokens);
  // A secret that isn't needed does no harm.
  using open = await model.restore(bytesSource(await savedBytes(context)), { secret: KEY });
  assert.equal(open.reused, context.tokens);
});

/** Whether `part` lies anywhere in `bytes`. */
function holds(bytes: Uint8Array, part: Uint8Array): boolean {
  for (let at = bytes.indexOf(part[0]); at !== -1; at = bytes.indexOf(part[0], at + 1)) {
    if (part.every((byte, i) => bytes[at + i] === byte)) return true;
  }
  return false;
}

Deno.test("no row, score, id or hash of a prefix lies in a secret file, as they do in a plain one", async () => {
  const options = { policy: "defensive", keep: "50%", maxCache: { tokens: 60, rule: "gate" } } as const;
  using context = await openContext(model, TEXT, options);
  const plain = await savedBytes(context, { withText: true }),
    length = Number(new DataView(plain.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(plain.subarray(8, 8 + length)));
  const tensor = (name: string) => {
    const [start, end] = header[name].data_offsets;
    return plain.subarray(8 + length + start, 8 + length + end);
  };
  const secrets: Uint8Array[] = [];
  const cut = (bytes: Uint8Array, size: number) => {
    for (let at = 0; at + size <= bytes.length; at += size) secrets.push(bytes.subarray(at, at + size));
  };
  for (const layer of [0, 1]) {
    for (const name of ["keys", "values"]) cut(tensor(`layer.${layer}.${name}`), 4 * context.cache.shape.headDim);
    cut(tensor(`layer.${layer}.predicted`), 16);
  }
  cut(tensor("text.ids"), 16);
  cut(tensor("prefixes.hashes"), 32);
  assert.ok(secrets.length > 200 && secrets.every((part) => holds(plain, part)), "the search finds what is there");
  for (const [name, save] of WAYS) {
    const bytes = await savedBytes(context, { ...save, withText: true });
    assert.equal(secrets.filter((part) => holds(bytes, part)).length, 0, name);
  }
});

Deno.test("a byte changed anywhere in a secret file is refused, and other contexts go on", async () => {
  using context = await openContext(model, TEXT, { policy: "defensive", keep: "30%" });
  const answered = await context.ask(QUESTION, ASK);
  for (const [name, save] of WAYS) {
    const bytes = await savedBytes(context, save);
    for (let at = 0; at < bytes.length; at += Math.max(1, Math.floor(bytes.length / 60))) {
      const changed = bytes.slice();
      changed[at] ^= 4;
      const code = await refusalOf(model.restore(bytesSource(changed), { secret: KEY }));
      assert.match(code, /^(seal|snapshot)\./, `${name} at ${at}`);
    }
    for (const length of [0, 7, 90, 4000, bytes.length - 1]) {
      const code = await refusalOf(model.restore(bytesSource(bytes.slice(0, length)), { secret: KEY }));
      assert.match(code, /^(seal|snapshot)\./, `${name} of ${length} bytes`);
    }
  }
  assert.deepEqual((await context.ask(QUESTION, ASK)).ids, answered.ids);
});

Deno.test("cloaked rows that don't fit their heads, or have another form, are refused with hashes that hold", async () => {
  using context = await openContext(model, TEXT, { policy: "layer-defensive", keep: "30%" });
  const bytes = await savedBytes(context, { cloak: KEY }),
    lengths = [0, 1].map((head) => context.cache.length(0, head));
  const filled = (length: number) => Math.ceil(length / 16);
  const moved = [...Array(lengths[0] + 1).keys()].find((k) =>
    filled(lengths[0] - k) + filled(lengths[1] + k) !== filled(lengths[0]) + filled(lengths[1])
  )!;
  type Header = Record<string, { data_offsets: [number, number]; dtype: string }>;
  const fewer = resealed(bytes, (data, header) => {
    const at = (header as Header)["layer.0.lengths"].data_offsets[0], view = new DataView(data.buffer, data.byteOffset);
    [lengths[0] - moved, lengths[1] + moved].forEach((length, i) => view.setInt32(at + 4 * i, length, true));
    // Any positions that ascend in heads of these lengths.
    const from = (header as Header)["layer.0.positions"].data_offsets[0];
    for (let i = 0; i < lengths[0] + lengths[1]; i++) {
      view.setInt32(from + 4 * i, i < lengths[0] - moved ? i : i - lengths[0] + moved, true);
    }
  });
  await assert.rejects(model.restore(bytesSource(fewer), { secret: KEY }), {
    code: "snapshot.layout",
    message: /cloaked rows that don't fit/,
  });
  const narrow = rewritten(bytes, (header) => void ((header as Header)["layer.1.keys"].dtype = "I32"));
  assert.equal(await refusalOf(model.restore(bytesSource(narrow), { secret: KEY })), "snapshot.layout layer.1");
});

Deno.test("the model is given back", async () => {
  await model[Symbol.asyncDispose]();
});
