/** Every kernel against the plain backend, on each build of the kernels and each type of rows. */
import assert from "node:assert/strict";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { KERNEL_BACKENDS } from "../_helper/backends.ts";
import { readGolden } from "../_helper/golden.ts";
import { goldenKept } from "../_helper/golden_kept.ts";
import { ALL_SIZES, PARITY_CASES, SEED } from "../_helper/parity.ts";
import { TINY_LENGTHS } from "../_helper/tiny.ts";

console.log(`backend parity seed ${SEED}`);

for (const { name, start, oneType } of KERNEL_BACKENDS) {
  for (const { title, types, body } of PARITY_CASES) {
    for (const type of oneType ? types.slice(0, 1) : types) {
      Deno.test(`${name}, ${type}: ${title}`, async () => {
        using oracle = createReferenceBackend();
        using backend = await start();
        await body({ oracle, backend, type }, ALL_SIZES);
        assert.equal(backend.memory().allocatedBytes, 0, "everything was freed");
      });
    }
  }

  Deno.test(`${name}: the golden tiny models keep the published sets`, async () => {
    using backend = await start();
    await goldenKept(backend, TINY_LENGTHS, readGolden);
  });
}
