import assert from "node:assert/strict";
import { lockProblems, machinePathProblems, node20Problems, pinProblems } from "../../tools/hygiene.ts";

Deno.test("lockProblems() finds download hosts and knows Cargo's name of its index", () => {
  const cargo = 'source = "registry+https://github.com/rust-lang/crates.io-index"';
  assert.deepEqual(lockProblems("Cargo.lock", cargo), []);
  assert.equal(lockProblems("package-lock.json", '"resolved": "https://registry.example/a.tgz"').length, 1);
});

Deno.test("pinProblems() accepts one version only", () => {
  const text = JSON.stringify({
    dependencies: { a: "1.2.3", b: "^1.2.3" },
    devDependencies: { c: "*", d: "1.0.0-rc.1" },
  });
  assert.deepEqual(pinProblems("p", text), ['p: b is "^1.2.3", not one version', 'p: c is "*", not one version']);
});

Deno.test("machinePathProblems() finds folders of one machine and no others", () => {
  for (const path of ["/home/me/x", "see /tmp/out", "'/root/.cache'", "/work/main", "file:///home/me"]) {
    assert.equal(machinePathProblems("f", path).length, 1, path);
  }
  for (const path of ["./tmp/out", "a/home/b", "$HOME/tmp/x", "https://a.example/home/x", "/usr/bin/env", "/tmp"]) {
    assert.deepEqual(machinePathProblems("f", path), [], path);
  }
});

Deno.test("node20Problems() finds names Node 20 lacks, outside comments", () => {
  assert.equal(node20Problems("f", "using a = new AsyncDisposableStack();").length, 1);
  assert.deepEqual(node20Problems("f", " * import.meta.main is not in Node 20"), []);
});
