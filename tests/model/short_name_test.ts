import assert from "node:assert/strict";
import { MODELS } from "../../model/store/registry.ts";
import { shortName } from "../../model/store/short_name.ts";

Deno.test("shortName() is the registry's name, or the file's, from whatever folder or address", () => {
  const [{ name, file }] = MODELS;
  const address = `https://host.example/some/resolve/main/${file}`;
  for (const path of [file, `a/b/${file}`, `a\\${file}`, address, `${address}?download=true`, `${address}#x`]) {
    assert.equal(shortName(path), name, path);
  }
  assert.equal(shortName("/models/Own-Q4_0-00001-of-00003.GGUF"), "Own-Q4_0");
  assert.equal(shortName("blob"), "blob");
});
