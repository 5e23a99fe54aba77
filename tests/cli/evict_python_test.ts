/** Dumps as Python writes them, and a transformers model whose cache is pruned by `palisade evict`. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { parseKeep, resolveBudget } from "../../core/select/budget.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { extend } from "../../model/decode/extend.ts";
import { loadModel } from "../../model/model.ts";
import { readContext } from "../../model/read/layers.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { ROOT } from "../../tools/repository.ts";
import { readJson } from "../_helper/golden.ts";
import { palisade } from "../_helper/io.ts";
import { hasPython, runPython } from "../_helper/python.ts";
import { skipped } from "../_helper/skip.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("evict-python");
const COMMAND = `${process.execPath} run -A --no-check ${join(ROOT, "cli/main.ts")}`;
const data = (path: string) => fileURLToPath(new URL(`../data/${path}`, import.meta.url));

/** The golden layers in everything that NumPy and safetensors write; float16 in what says so. */
const WRITE = `
import sys, os
import numpy as np
from safetensors.numpy import load_file, save_file
source, out = sys.argv[1:]
tensors = {n: t for n, t in load_file(source).items() if n.startswith("layers/")}
np.savez(out + "/stored.npz", **tensors)
np.savez_compressed(out + "/packed.npz", **tensors)
np.savez(out + "/stacked.npz", **{p: np.stack([tensors[f"layers/{i}/{p}"] for i in range(3)]) for p in "qkv"}, wo=np.stack([tensors[f"layers/{i}/wo"] for i in range(3)]))
np.savez(out + "/double.npz", **{n: np.asfortranarray(t.astype(np.float64)) for n, t in tensors.items()})
save_file(tensors, out + "/again.safetensors")
save_file({n: t.astype(np.float16) for n, t in tensors.items()}, out + "/half.safetensors")
os.makedirs(out + "/arrays")
os.makedirs(out + "/layers")
for i in range(3):
    save_file({p: tensors[f"layers/{i}/{p}"] for p in ("q", "k", "v", "wo")}, f"{out}/layers/layer_{i}.safetensors")
    for p in ("q", "k", "v", "wo"):
        os.makedirs(f"{out}/arrays/layers/{i}", exist_ok=True)
        np.save(f"{out}/arrays/layers/{i}/{p}.npy", tensors[f"layers/{i}/{p}"])
`;

/** What was written, as Python reads it. */
const READ = `
import sys, json
import numpy as np
from safetensors.numpy import load_file
rows = np.load(sys.argv[1] + "/kept.npy")
assert rows.dtype == np.int32 and rows.shape[1] == 3
byname = load_file(sys.argv[1] + "/kept.safetensors")
sets = [[rows[(rows[:, 0] == l) & (rows[:, 1] == h)][:, 2].tolist() for h in range(2)] for l in range(3)]
for l in range(3):
    counts = byname[f"layers/{l}/counts"]
    parts = np.split(byname[f"layers/{l}/kept"], np.cumsum(counts)[:-1])
    assert [p.tolist() for p in parts] == sets[l]
json.dump(sets, sys.stdout)
`;

/** What the documentation has for notebooks, run on the golden layers; `kept` as JSON. */
async function notebook(): Promise<string> {
  const [, program] = /```python\n(import subprocess\n[\s\S]*?)```/.exec(
    await readFile(join(ROOT, "docs/dumps.md"), "utf8"),
  )!;
  return `
import json, os, shlex, sys
from safetensors.numpy import load_file
golden = load_file(sys.argv[1])
layers = [{part: golden[f"layers/{i}/{part}"] for part in ("q", "k", "v", "wo")} for i in range(3)]
${
    program.replace('["palisade", ', '[*shlex.split(os.environ["PALISADE"]), ').replace(
      "layer-defensive",
      "layer-defensive@reference",
    )
  }
assert [[len(rows) for rows in heads] for heads in pruned] == [[len(rows) for rows in heads] for heads in kept]
json.dump([[rows.tolist() for rows in heads] for heads in kept], sys.stdout)
`;
}

async function keptBy(path: string, parameters: readonly string[]): Promise<number[][][]> {
  const { code, out, err } = await palisade(["evict", path, ...parameters]);
  assert.equal(code, 0, err);
  const sets: number[][][] = [];
  for (const line of out.trimEnd().split("\n")) {
    const { layer, head, kept } = JSON.parse(line);
    (sets[layer] ??= [])[head] = kept;
  }
  return sets;
}

if (!await hasPython("numpy", "safetensors")) {
  skipped("palisade evict reads what Python writes", "no python3 with numpy and safetensors");
} else {
  Deno.test("palisade evict keeps the golden sets of what NumPy and safetensors wrote, and they read what it writes", async () => {
    const { kept } = await readJson<{ kept: Record<string, Record<string, number[][][]>> }>("tiny-L300.kept.json");
    const { code, stderr } = await runPython(["-c", WRITE, data("golden/tiny-L300.safetensors"), folder]);
    assert.equal(code, 0, stderr);
    const wanted = kept["0.8"];
    const policies = {
      "snapkv-w32": "snapkv@reference",
      "layer-defensive": "layer-defensive@reference",
      "critical-adakv(snapkv-w32,0.2)": "critical-adakv@reference",
    };
    for (const [name, policy] of Object.entries(policies)) {
      for (
        const file of ["stored.npz", "packed.npz", "stacked.npz", "double.npz", "again.safetensors", "arrays", "layers"]
      ) {
        assert.deepEqual(
          await keptBy(join(folder, file), ["--policy", policy, "--keep", "0.2"]),
          wanted[name],
          `${file} ${policy}`,
        );
      }
    }
    const half = await keptBy(join(folder, "half.safetensors"), ["--policy", "snapkv@reference", "--keep", "0.2"]);
    const same = half.flat().flatMap((head, i) => head.filter((each) => wanted["snapkv-w32"].flat()[i].includes(each)));
    assert.ok(same.length > 0.97 * half.flat(2).length, "float16 rounds, and little changes");
    const command = ["evict", join(folder, "stored.npz"), "--policy", policies["layer-defensive"], "--keep", "0.2"];
    for (const name of ["kept.npy", "kept.safetensors"]) {
      assert.equal((await palisade([...command, "--write", join(folder, name)])).code, 0);
    }
    const read = await runPython(["-c", READ, folder]);
    assert.equal(read.code, 0, read.stderr);
    assert.deepEqual(JSON.parse(read.stdout), wanted["layer-defensive"]);
  });
}

if (await hasPython("numpy", "safetensors")) {
  Deno.test("what the documentation has for notebooks runs, and gives the golden sets", async () => {
    const { kept } = await readJson<{ kept: Record<string, Record<string, number[][][]>> }>("tiny-L300.kept.json");
    const { code, stdout, stderr } = await runPython(["-c", await notebook(), data("golden/tiny-L300.safetensors")], {
      cwd: folder,
      env: { PALISADE: COMMAND },
    });
    assert.equal(code, 0, stderr);
    assert.deepEqual(JSON.parse(stdout), kept["0.8"]["layer-defensive"]);
  });
}

const CONTEXT = Array.from({ length: 90 }, (_, i) => 20 + (i * i * 7 + 13 * i) % 240);
const QUESTION = [44, 101, 37];

if (!await hasPython("torch", "transformers", "gguf")) {
  skipped(
    "a transformers model goes on from what palisade evict kept",
    "no python3 with torch, transformers and gguf",
    "device",
  );
} else {
  Deno.test("a transformers model goes on from what palisade evict kept, with palisade's own logits", async () => {
    const path = data("models/llama-plain.gguf"), policy = "critical(snapkv(window=8))", keep = "30", tokens = 4;
    const { code, stdout, stderr } = await runPython(
      [data("../_helper/python/run_example.py"), join(ROOT, "docs/examples/evict_transformers.py"), path],
      {
        env: { PALISADE: COMMAND },
        input: JSON.stringify({ context: CONTEXT, question: QUESTION, policy, keep, tokens }),
      },
    );
    assert.equal(code, 0, stderr);
    const theirs: { kept: number[][][]; logits: number[][] } = JSON.parse(stdout);
    await using model = await loadModel(path, await currentRuntime(), {
      backend: "ts",
      dense: "web",
      precision: "float32",
    });
    const resolved = resolvePolicy(policy), { config } = model;
    const budget = resolveBudget(resolved, parseKeep(keep), CONTEXT.length, config);
    const outputWeights = (layer: number) => model.file.readFloat32(`blk.${layer}.attn_output.weight`);
    const { cache } = await readContext({ backend: createReferenceBackend(), dense: model.dense }, CONTEXT, {
      policy: resolved,
      budget,
      outputWeights,
    });
    using _ = cache;
    theirs.kept.forEach((heads, layer) => {
      heads.forEach((head, h) => assert.deepEqual(head, [...cache.positions(layer, h)], `layer ${layer}, head ${h}`));
    });
    let ids = QUESTION, largest = 0;
    for (const row of theirs.logits) {
      const ours = await extend(model.dense, cache, ids, {});
      row.forEach((value, i) => largest = Math.max(largest, Math.abs(value - ours[i])));
      ids = [row.indexOf(Math.max(...row))];
    }
    assert.equal(theirs.logits.length, tokens);
    // Float32 sums in another order.
    assert.ok(largest < 1e-4, `${largest}`);
  });
}
