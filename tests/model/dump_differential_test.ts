/**
 * Damaged files: what this side takes, the `safetensors` crate, NumPy and `gguf` take too. 10,000 files; a million with
 * PALISADE_RUNS=100.
 */
import assert from "node:assert/strict";
import process from "node:process";
import { PalisadeError } from "../../core/errors.ts";
import { openSource } from "../../model/dump/open.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { damagedFile, judged, type Kind, KINDS } from "../_helper/damage.ts";
import { hasPython } from "../_helper/python.ts";
import { skipped } from "../_helper/skip.ts";

/** Files of each kind, before PALISADE_RUNS multiplies them; 10,000 together. */
const FILES: Readonly<Record<Kind, number>> = { safetensors: 4000, npy: 2500, npz: 2000, gguf: 1500 };
const RUNS = Number(process.env["PALISADE_RUNS"] ?? 1);
/** Files that go through one process of Python. */
const BATCH = 10_000;

/** Reads all of a file; false where it is refused. Anything but a refusal fails. */
async function taken(kind: Kind, bytes: Uint8Array): Promise<boolean> {
  const source = new CountingSource(bytes);
  try {
    if (kind === "gguf") {
      const file = await openGguf(source);
      try {
        for (const name of file.tensors.keys()) await file.readFloat32(name);
      } finally {
        await file.close();
      }
    } else {
      const container = await openSource(source);
      try {
        for (const name of container.names) {
          const { shape, read } = await container.tensor(name);
          await read(0, shape.reduce((product, size) => product * size, 1));
        }
      } finally {
        await container.close();
      }
    }
    return true;
  } catch (error) {
    assert.ok(error instanceof PalisadeError && error.kind === "input", `${(error as Error).stack}`);
    return false;
  } finally {
    assert.ok(source.largestRead <= bytes.length, "nothing is read, or made room for, that the file hasn't");
    assert.ok(source.closed);
  }
}

for (const kind of KINDS) {
  const title = `no damaged ${kind} file is taken that others refuse`;
  if (!await hasPython("numpy", "safetensors", "gguf")) {
    skipped(title, "no python3 with numpy, safetensors and gguf");
    continue;
  }
  Deno.test(title, async () => {
    const count = Math.ceil(FILES[kind] * RUNS);
    let spoilt = 0;
    for (let first = 0; first < count; first += BATCH) {
      const files: Uint8Array[] = [], numbers: number[] = [];
      for (let i = first; i < Math.min(count, first + BATCH); i++) {
        const bytes = damagedFile(kind, i), fine = await taken(kind, bytes);
        assert.ok(fine || i % 20 !== 0, `whole file ${i} is refused`);
        if (fine && i % 20 !== 0) spoilt++;
        if (fine) [files[files.length], numbers[numbers.length]] = [bytes, i];
      }
      const verdicts = await judged(kind, [...files, new Uint8Array(40)]);
      assert.equal(verdicts.pop(), false, "the judge refuses something");
      const wrong = numbers.filter((_, n) => !verdicts[n]);
      assert.deepEqual(wrong, [], `${kind} files that others refuse: ${wrong.length} of ${numbers.length}`);
    }
    // Damage to numbers alone, and texts that mean the same, leave a file good.
    assert.ok(spoilt > count / 200 && spoilt < count * 0.9, `${spoilt} of ${count} damaged files are taken`);
  });
}
