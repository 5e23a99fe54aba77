/** The published attacks on keys and values, against the files that palisade writes: they work, and what stops them. */
import assert from "node:assert/strict";
import { adapt } from "../../../bench/secrets/adaptive.ts";
import {
  collide,
  collideNearest,
  firstLayerOf,
  inject,
  invert,
  rougeRecall,
  shareFound,
} from "../../../bench/secrets/attacks.ts";
import {
  asBlocks,
  bytesAsRows,
  cloakedAlone,
  type Stolen,
  type StolenHead,
  stolenRows,
} from "../../../bench/secrets/stolen.ts";
import { openContext } from "../../../model/session.ts";
import { keySecret } from "../../../model/snapshot/seal/key.ts";
import { newSalt } from "../../../model/snapshot/cloak/cloak.ts";
import { contextIds } from "../../../model/text/prompt.ts";
import { savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";

const KEY = keySecret(new Uint8Array(32).fill(5));
/** What the attack finds of a half depends on which rows share a block with the known ones, and so on the salt. */
const SALT = newSalt().fill(3);
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

Deno.test("four known tokens peel KV-Cloak, and none what a cloaked or sealed file holds", async () => {
  // Heads of 32: where they are no wider than the sixteen rows of a block, a span says nothing.
  const model = await snapshotModel("mistral3-yarn");
  try {
    const layer = await firstLayerOf(model), text = TEXT.slice(0, 190), known = 4, { runtime, config } = model;
    const ids = contextIds(model.frame, model.tokenizer, text), told = new Map(ids.slice(0, known).entries());
    const found = (heads: readonly StolenHead[]) => shareFound(ids, adapt(model, layer, heads, told), known);
    for (const [keep, least, most] of [["100%", 0.9, 1], ["50%", 0.4, 0.7]] as const) {
      using context = await openContext(model, text, { policy: keep === "100%" ? "full" : "layer-defensive", keep });
      const stolen = async (options: Parameters<typeof savedBytes>[1]) =>
        (await stolenRows(await savedBytes(context, options), runtime, config))[0];
      const alone = await cloakedAlone(await stolen({}), KEY, config.headDim, SALT), share = found(alone);
      assert.ok(share >= least && share <= most, `${keep} kept: ${share}`);
      assert.equal(adapt(model, layer, alone, new Map()).size, 0, "nothing known, nothing found");
      assert.equal(found(asBlocks(await stolen({ cloak: KEY }), config.headDim)), 0);
      const [sealed] = bytesAsRows(await savedBytes(context, { encrypt: KEY }), config, ids.length);
      assert.equal(found(asBlocks(sealed, config.headDim)), 0);
    }
  } finally {
    await model[Symbol.asyncDispose]();
  }
});

Deno.test("rougeRecall() is the longest common subsequence as a share of the text", () => {
  assert.equal(rougeRecall([1, 2, 3, 4], [1, 3, 9, 4]), 0.75);
  assert.equal(rougeRecall([1, 2], []), 0);
  assert.equal(rougeRecall([1, 2], [2, 1]), 0.5);
});
