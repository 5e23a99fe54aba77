/** `ask` on models whose right answer is known. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { chainModel, CHATML } from "../_helper/chain_model.ts";
import { palisade } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("chain");
const book = join(folder, "book.txt"), model = join(folder, "ok.gguf");
const bytes = chainModel({ chain: ["\n", "42", "<|im_end|>"], template: CHATML });
await writeFile(model, bytes);
await writeFile(book, "Call me Ishmael. Some years ago I thought I would sail about a little.");

Deno.test("chainModel() makes the file that its Python twin makes", () => {
  const hash = createHash("sha256").update(bytes).digest("hex");
  assert.equal(hash, "e97e3be1ab14a8dcb2c2c25e8817c1c8266be550b4e41624d96a9ed878c0754f");
});

Deno.test("ask answers with the chain and stops at its end, at any budget", async () => {
  for (const keep of ["100%", "20%"]) {
    const { code, out, err } = await palisade([
      ...["ask", "--model", model, "--context", book, "--question", "How much?", "--policy", "snapkv"],
      ...["--keep", keep, "--backend", "ts", "--dense", "web"],
    ]);
    assert.equal(code, 0, err);
    assert.equal(out, "42\n");
  }
});
