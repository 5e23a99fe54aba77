/** The contract of stores in a page: bundled, and called by the test through `globalThis`. */
import { indexedDbStore } from "../../model/snapshot/stores/indexed_db.ts";
import { pageStore } from "../../model/snapshot/stores/open.ts";
import { opfsStore } from "../../model/snapshot/stores/opfs.ts";
import { emptied, STORE_CONTRACT } from "./store_contract.ts";

const STORES = { opfs: opfsStore, indexedDb: indexedDbStore };

/** Each check by name, with why it failed, or nothing. */
async function checkStore(kind: keyof typeof STORES): Promise<[what: string, failure: string | undefined][]> {
  const outcomes: [string, string | undefined][] = [];
  for (const { what, check } of STORE_CONTRACT) {
    await using store = await STORES[kind]("contract");
    await emptied(store);
    const failure = await check(store).then(() => undefined, (error: Error) => error.message);
    await emptied(store);
    outcomes.push([what, failure]);
  }
  return outcomes;
}

Object.assign(globalThis, { checkStore, stores: { ...STORES, page: pageStore } });
