import assert from "node:assert/strict";
import fc from "fast-check";
import { invalidUtf8Offset } from "../../runtime/utf8.ts";

/** Slow and obvious: the longest prefix that the platform's decoder takes, on a sequence's border. */
function naiveOffset(bytes: Uint8Array): number {
  const takes = (part: Uint8Array) => {
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(part);
      return true;
    } catch {
      return false;
    }
  };
  if (takes(bytes)) return -1;
  for (let end = bytes.length - 1; end > 0; end--) if (takes(bytes.subarray(0, end))) return end;
  return 0;
}

Deno.test("invalidUtf8Offset() agrees with the platform's decoder on every lead byte and the edges behind it", () => {
  for (let a = 0x7e; a < 0x100; a++) {
    for (const b of [0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2, 0xff]) {
      for (const rest of [[], [0x80], [0x80, 0x80], [0xbf, 0xbf, 0x41]]) {
        const bytes = Uint8Array.from([a, b, ...rest]);
        assert.equal(invalidUtf8Offset(bytes), naiveOffset(bytes), [...bytes].map((x) => x.toString(16)).join(" "));
      }
    }
  }
});

Deno.test("invalidUtf8Offset() finds a bad byte anywhere in good text", () => {
  const property = fc.property(
    fc.string({ unit: "grapheme" }),
    fc.string(),
    fc.constantFrom(0x80, 0xc0, 0xff),
    (a, b, bad) => {
      const head = new TextEncoder().encode(a);
      const bytes = Uint8Array.from([...head, bad, ...new TextEncoder().encode(b)]);
      assert.equal(invalidUtf8Offset(head), -1);
      assert.equal(invalidUtf8Offset(bytes), naiveOffset(bytes));
    },
  );
  fc.assert(property, { seed: 20261, numRuns: 300 });
});
