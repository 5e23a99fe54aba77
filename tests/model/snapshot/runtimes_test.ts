/** C10: saved in one process, restored in others, of other runtimes and backends, with the same content and answers. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { CACHE_TYPES } from "../../../core/cache/entry_type.ts";
import { openContext } from "../../../model/session.ts";
import { findBun } from "../../../tools/bun.ts";
import { runChild } from "../../../tools/child.ts";
import { hasPython, runPython } from "../../_helper/python.ts";
import { skipped } from "../../_helper/skip.ts";
import { ASK, contentHash, QUESTION, savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";
import { testFolder } from "../../_helper/workbench.ts";

const folder = await testFolder("snapshot-runtimes");
const ANSWER = fileURLToPath(new URL("../../_helper/snapshot_answer.ts", import.meta.url));
const bun = await findBun();

interface Told {
  readonly content: string;
  readonly ids: readonly number[];
  readonly reused: number;
}

async function told(program: string, before: readonly string[], path: string, backend: string): Promise<Told> {
  const { code, stdout, stderr } = await runChild(program, [...before, ANSWER, path, backend], { timeout: 120 });
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout.trim().split("\n").at(-1)!);
}

Deno.test("a snapshot gives the same rows and answers in other processes, runtimes and backends", async () => {
  assert.ok(bun, "no Bun in node_modules");
  const deno = [process.execPath, ["run", "-A", "--no-check"]] as const, other = [bun, ["run"]] as const;
  // Saved by which backend, restored in which runtime by which.
  const crossed = [["ts", deno, "wasm"], ["ts", other, "ts"], ["wasm", deno, "ts"], ["wasm", other, "wasm"]] as const;
  for (const cacheType of CACHE_TYPES) {
    for (const [saver, [program, before], restorer] of cacheType === "f32" ? crossed : crossed.slice(3)) {
      await using model = await snapshotModel("llama-plain", { backend: saver });
      using context = await openContext(model, TEXT, { policy: "layer-defensive", keep: "30%", cacheType });
      const { ids } = await context.ask(QUESTION, ASK), path = join(folder, `${cacheType}-${saver}.palisade`);
      await writeFile(path, await savedBytes(context));
      const there = await told(program, before, path, restorer);
      const title = `${cacheType} saved by ${saver}, restored by ${restorer} in ${program}`;
      assert.deepEqual(
        [there.ids, there.reused, there.content],
        [ids, context.tokens, await contentHash(context)],
        title,
      );
    }
  }
});

const READ = `
import sys, json, hashlib
import numpy as np
from safetensors import safe_open
with safe_open(sys.argv[1], "numpy") as f:
    meta = f.metadata()
    identity, state = dict(json.loads(meta["identity"])), json.loads(meta["state"])
    names = sorted(f.keys())
    lengths, positions = f.get_tensor("layer.0.lengths"), f.get_tensor("layer.0.positions")
    keys, values, ids = f.get_tensor("layer.0.keys"), f.get_tensor("layer.0.values"), f.get_tensor("text.ids")
    prefix = f.get_tensor("prefixes.lengths")
    assert keys.shape == values.shape == (lengths.sum(), keys.shape[1]) and prefix[-1] == len(ids) == state["tokens"]
    print(json.dumps({"version": meta["palisade_snapshot"], "policy": identity["policy"], "names": names,
        "dtype": str(keys.dtype), "lengths": lengths.tolist(), "positions": positions.tolist(), "ids": ids.tolist(),
        "sum": float(np.abs(keys.astype(np.float64)).sum()), "manifest": len(f.get_tensor("manifest.sha256"))}))
`;

const IN_PYTHON = "Python's safetensors opens a snapshot's arrays, in all types";
if (!await hasPython("numpy", "safetensors")) {
  skipped(IN_PYTHON, "no Python with numpy and safetensors: tools/install_test_tools.sh installs them", "device");
} else {
  Deno.test(IN_PYTHON, async () => {
    const model = await snapshotModel();
    for (const [cacheType, dtype] of [["f32", "float32"], ["f16", "float16"], ["int8", "int8"]] as const) {
      using context = await openContext(model, TEXT, { policy: "snapkv", keep: "30%", cacheType });
      const path = join(folder, `${cacheType}.palisade`);
      await writeFile(path, await savedBytes(context, { withText: true }));
      const { code, stdout, stderr } = await runPython(["-c", READ, path]);
      assert.equal(code, 0, stderr);
      const seen = JSON.parse(stdout), { cache } = context, heads = [...Array(cache.shape.kvHeads).keys()];
      assert.deepEqual([seen.version, seen.policy, seen.dtype], ["1", "snapkv", dtype]);
      assert.deepEqual(seen.lengths, heads.map((head) => cache.length(0, head)));
      assert.deepEqual(seen.positions, heads.flatMap((head) => [...cache.positions(0, head)]));
      assert.equal(seen.ids.length, context.tokens);
      if (cacheType === "int8") continue;
      let sum = 0;
      for (const head of heads) for (const x of (await cache.rows(0).copyRows(head)).keys) sum += Math.abs(x);
      assert.ok(Math.abs(seen.sum - sum) < 1e-6 * sum);
    }
  });
}
