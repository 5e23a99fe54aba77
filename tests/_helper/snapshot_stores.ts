/** The contract of snapshot stores as tests. */
import type { SnapshotStore } from "../../model/snapshot/store.ts";
import { emptied, STORE_CONTRACT } from "./store_contract.ts";

/**
 * Registers the suite; `open` gives a store of which nothing that begins with `suite-` matters. `test` stands in for
 * `Deno.test`.
 */
export function storeSuite(
  name: string,
  open: () => Promise<SnapshotStore>,
  test: (name: string, fn: () => Promise<void>) => void = Deno.test,
): void {
  for (const { what, check } of STORE_CONTRACT) {
    test(`${name} ${what}`, async () => {
      await using store = await open();
      await emptied(store);
      try {
        await check(store);
      } finally {
        await emptied(store);
      }
    });
  }
}
