/** The published attacks on keys and values, against the files that palisade writes: they work, and what stops them. */
import assert from "node:assert/strict";
import {
  collide,
  collideNearest,
  firstLayerOf,
  inject,
  invert,
  rougeRecall,
  shareFound,
} from "../../../bench/secrets/attacks.ts";
import { bytesAsRows, type Stolen, stolenRows } from "../../../bench/secrets/stolen.ts";
import { openContext } from "../../../model/session.ts";
import { keySecret } from "../../../model/snapshot/seal/key.ts";
import { contextIds } from "../../../model/text/prompt.ts";
import { savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";

const KEY = keySecret(new Uint8Array(32).fill(5));
/** Far above what chance gives, some percent of a vocabulary of a few hundred; salts are random, so it varies. */
const CHANCE = 0.2;

Deno.test("inversion and collision read the text back from a plain snapshot, and not from a cloaked or sealed one", async () => {
  const model = await snapshotModel();
  try {
    const layer = await firstLayerOf(model),
      text = TEXT.slice(0, 190),
      ids = contextIds(model.frame, model.tokenizer, text);
    using context = await openContext(model, text, { policy: "full" });
    const attacks = async (stolen: Stolen) => [
      shareFound(ids, invert(model, layer, stolen), 0),
      shareFound(ids, await collide(model, layer, stolen, ids.length), 0),
      shareFound(ids, collideNearest(model, layer, stolen), 0),
    ];
    const stolen = async (options: Parameters<typeof savedBytes>[1]) =>
      await stolenRows(await savedBytes(context, options), model.runtime, model.config);
    const plain = await stolen({});
    assert.ok((await attacks(plain)).every((share) => share > 0.9), "the attacks work");
    for (const share of await attacks(await stolen({ cloak: KEY }))) assert.ok(share < CHANCE, `cloaked: ${share}`);
    const sealed = bytesAsRows(await savedBytes(context, { encrypt: KEY }), model.config, ids.length);
    for (const share of await attacks(sealed)) assert.ok(share < CHANCE, `sealed: ${share}`);
    // Over rows that were stolen the model says what it says to who asks it.
    const said = await inject(model, plain, ids.length, 5);
    assert.ok(said.length <= 5 && said.every((id) => id >= 0 && id < model.config.vocabulary));
    assert.deepEqual(await inject(model, plain, ids.length, 5), said);
  } finally {
    await model[Symbol.asyncDispose]();
  }
});

Deno.test("rougeRecall() is the longest common subsequence as a share of the text", () => {
  assert.equal(rougeRecall([1, 2, 3, 4], [1, 3, 9, 4]), 0.75);
  assert.equal(rougeRecall([1, 2], []), 0);
  assert.equal(rougeRecall([1, 2], [2, 1]), 0.5);
});
