/** The committed modules belong to the committed sources, and stay small. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { RELAXED, SIMD128 } from "../../wasm/kernels_bytes.ts";

const at = (path: string) => new URL(`../../${path}`, import.meta.url);
const sha256 = (...parts: (string | Uint8Array)[]) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
};

async function recorded(): Promise<Map<string, string>> {
  const lines = (await readFile(at("wasm/kernels.hash"), "utf8")).trim().split("\n");
  return new Map(lines.map((line) => line.split(" ") as [string, string]));
}

Deno.test("the kernels were built from the sources as they stand: else run tools/build_wasm.sh", async () => {
  const sources = (await readdir(at("wasm/kernels/src"))).filter((name) => name.endsWith(".rs"));
  const files = ["Cargo.lock", "Cargo.toml", "build.rs", ...sources.sort().map((name) => `src/${name}`)];
  const parts: (string | Uint8Array)[] = [];
  for (const file of files) parts.push(`${file}\n`, await readFile(at(`wasm/kernels/${file}`)));
  assert.equal(sha256(...parts), (await recorded()).get("source"));
});

Deno.test("the embedded and the checked kernels are the built ones", async () => {
  const hashes = await recorded();
  assert.equal(sha256(Buffer.from(SIMD128, "base64")), hashes.get("simd128"));
  assert.equal(sha256(Buffer.from(RELAXED, "base64")), hashes.get("relaxed"));
  assert.equal(sha256(await readFile(at("tests/data/kernels_checked.wasm"))), hashes.get("checked"));
});

/** With three types of weights the modules had 140 kB, with sixteen 180, since they are woven 230, with thin keys 250,
 * with rows of four bits 276, and the relaxed one has 302 since int8 products have two forms. */
const MOST_BYTES = 308_000;

Deno.test("each module of the package is at most 308 kB", () => {
  for (const module of [SIMD128, RELAXED]) {
    const bytes = Buffer.from(module, "base64").length;
    console.log(`${bytes} bytes`);
    assert.ok(bytes <= MOST_BYTES);
  }
});
