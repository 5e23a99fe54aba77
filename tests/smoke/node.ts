/** Node: the packed tarball, installed in an empty folder. Run by `tools/test.ts`. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { findBun } from "../../tools/bun.ts";
import { runChild } from "../../tools/child.ts";
import { ROOT } from "../../tools/repository.ts";
import { commandLine, testCommandLine, testWebGpu, tinyModel } from "./cli.ts";

async function run(program: string, args: readonly string[], cwd: string): Promise<string> {
  const { code, stdout, stderr, killed } = await runChild(program, args, { cwd, timeout: 300 });
  assert.equal(code, 0, `${program} ${args.join(" ")}: ${killed}\n${stdout}\n${stderr}`);
  return stdout;
}

/** Packs the checkout and installs the tarball in an empty folder, which it returns. */
async function packAndInstall(): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "palisade-consumer-"));
  await run("npm", ["pack", "--silent", `--pack-destination=${folder}`], ROOT);
  const tarball = readdirSync(folder).find((name) => name.endsWith(".tgz"));
  assert.ok(tarball, "npm pack wrote no tarball");
  writeFileSync(join(folder, "package.json"), '{ "name": "consumer", "private": true, "type": "module" }\n');
  await run("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", `./${tarball}`], folder);
  return folder;
}

let installed: Promise<string> | undefined;

/** The folder with the installed package. Only the first caller hears in full why there is none. */
function consumer(): Promise<string> {
  if (installed === undefined) {
    const first = packAndInstall();
    installed = first.catch(() => {
      throw new Error("the package could not be packed and installed, see the first failure");
    });
    installed.catch(() => {}); // reported by `first`
    return first;
  }
  return installed;
}
const packageFolder = async () => join(await consumer(), "node_modules/palisade-kv");

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true }).map(String).map((name) => name.replaceAll("\\", "/"));
}

Deno.test("npm pack and npm install give a package in an empty folder", async () => {
  await consumer();
});

testCommandLine("node", async () => commandLine(join(await consumer(), "node_modules/.bin/palisade")));

testWebGpu("node", async (env) => {
  const folder = await consumer();
  // As if it had been installed beside the package.
  const beside = join(folder, "node_modules/webgpu");
  if (!existsSync(beside)) symlinkSync(realpathSync(join(ROOT, "node_modules/webgpu")), beside, "junction");
  return commandLine(join(folder, "node_modules/.bin/palisade"), [], env);
});

Deno.test("the Node of this suite is 20 or newer", async () => {
  const version = (await run("node", ["--version"], ROOT)).trim();
  console.log(`node ${version}`);
  assert.ok(Number(version.slice(1).split(".")[0]) >= 20);
});

Deno.test("the package holds no tests, tools or TypeScript sources", async () => {
  const files = filesBelow(await packageFolder());
  assert.deepEqual(files.filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts")), []);
  assert.deepEqual(files.filter((name) => /^(dist\/)?(tests|tools|bench|docs)(\/|$)/.test(name)), []);
  for (const name of ["LICENSE", "dist/mod.js", "dist/mod.d.ts", "dist/core/mod.js", "dist/core/mod.d.ts"]) {
    assert.ok(files.includes(name), `${name} is missing`);
  }
});

Deno.test("the package's command starts with a line that names node", async () => {
  const main = readFileSync(join(await packageFolder(), "dist/cli/main.js"), "utf8");
  assert.equal(main.split("\n")[0], "#!/usr/bin/env node");
});

Deno.test("the package works without onnxruntime-node", async () => {
  assert.equal(existsSync(join(await consumer(), "node_modules/onnxruntime-node")), false);
});

Deno.test("import of both entry points works in Node", async () => {
  const folder = await consumer();
  const script = `const all = await import("palisade-kv"), core = await import("palisade-kv/core");
    console.log(JSON.stringify([Object.keys(all), Object.keys(core)]));`;
  const output = await run("node", ["--input-type=module", "--eval", script], folder);
  const [all, core]: string[][] = JSON.parse(output);
  assert.ok(all.length > 0 && core.length > 0);
  assert.ok(all.includes("PalisadeError"), `exports: ${all}`);
  assert.ok(core.includes("PalisadeError"), `exports of core: ${core}`);
});

/** A program over the package, as a user's: a dump's eviction, a model, an answer. */
const PROGRAM = `import { readFileSync } from "node:fs";
import { bufferSource, currentRuntime, loadModel, openContext, PalisadeError } from "palisade-kv";
import { evictDump } from "palisade-kv/core";
import process from "node:process";

console.log(process.versions.bun ? "Bun" : process.versions.deno ? "Deno" : process.version);
const shape = { heads: 2, kvHeads: 1, headDim: 4 }, L = 60;
const floats = (count) => Float32Array.from({ length: count }, (_, i) => Math.sin(i * i));
const layer = { queries: floats(2 * L * 4), queryRows: L, keys: floats(L * 4), values: floats(L * 4) };
const { kept } = evictDump("snapkv(window=8)", { tokens: 20 }, shape, [layer]);
const runtime = await currentRuntime(), asked = { backend: "wasm", dense: "wasm", precision: "float32" };
const model = await loadModel(bufferSource(readFileSync(MODEL)), runtime, asked);
const context = await openContext(model, "The keeper counted the stakes. ".repeat(20), { keep: "30%", policy: "snapkv" });
const { ids } = await context.ask("How many?", { maxTokens: 6 });
const entries = context.cache.entries(), identity = await model.identity();
const code = await openContext(model, "x", { keep: "0" }).then(() => "taken", (error) => error instanceof PalisadeError && error.code);
await model[Symbol.asyncDispose]();
console.log(JSON.stringify({ kept: [...kept[0][0]], ids: [...ids], entries, identity, code }));
`;

/** Runtimes from npm besides the Node of this suite; Bun is this package's own. */
const RUNTIMES: Readonly<Record<string, { says: RegExp; command: () => Promise<readonly string[]> }>> = {
  "the Node of this suite": { says: /^v2\d/, command: () => Promise.resolve(["node"]) },
  "Node 22": { says: /^v22\./, command: () => Promise.resolve(["npx", "-y", "node@22"]) },
  "Node 24": { says: /^v24\./, command: () => Promise.resolve(["npx", "-y", "node@24"]) },
  Bun: { says: /^Bun$/, command: async () => [(await findBun())!] },
  Deno: { says: /^Deno$/, command: () => Promise.resolve([Deno.execPath(), "run", "-A", "--no-lock"]) },
};

let here: Promise<string> | undefined;

/** What the program prints over the sources. */
async function programHere(): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "palisade-program-"));
  const at = (path: string) => pathToFileURL(join(ROOT, path)).href;
  const source = programText().replace('"palisade-kv"', JSON.stringify(at("mod.ts")))
    .replace('"palisade-kv/core"', JSON.stringify(at("core/mod.ts")));
  writeFileSync(join(folder, "program.mjs"), source);
  const args = ["run", "-A", "--no-check", "--config", join(ROOT, "deno.json"), "program.mjs"];
  return (await run(Deno.execPath(), args, folder)).split("\n")[1];
}

function programText(): string {
  return PROGRAM.replace("MODEL", JSON.stringify(tinyModel()));
}

for (const [name, { says, command }] of Object.entries(RUNTIMES)) {
  Deno.test(`the installed package does in ${name} what its sources do in Deno`, async () => {
    const folder = await consumer(), [program, ...before] = await command();
    writeFileSync(join(folder, "program.mjs"), programText());
    const [version, output] = (await run(program, [...before, "program.mjs"], folder)).split("\n");
    assert.match(version, says);
    const { kept, ids, code } = JSON.parse(output);
    assert.equal(kept.length, 20);
    assert.ok(ids.length > 0);
    assert.equal(code, "keep.range");
    assert.equal(output, await (here ??= programHere()));
  });
}

Deno.test("a consumer's file type-checks against both entry points with nodenext resolution", async () => {
  const folder = await consumer();
  const compilerOptions = {
    module: "nodenext",
    moduleResolution: "nodenext",
    target: "es2023",
    lib: ["es2024", "dom", "esnext.disposable"],
    types: [],
    strict: true,
    noEmit: true,
    skipLibCheck: false,
  };
  const check = async (name: string, source: string) => {
    writeFileSync(join(folder, `${name}.ts`), source);
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files: [`${name}.ts`] }));
    return await runChild("node", [join(ROOT, "node_modules/typescript/bin/tsc"), "-p", "."], {
      cwd: folder,
      timeout: 120,
    });
  };
  const good = await check(
    "good",
    `import { PalisadeError } from "palisade-kv";
import * as core from "palisade-kv/core";
export const code: string = new PalisadeError("input", "a.b", "message").code;
export const names: string[] = Object.keys(core);
`,
  );
  // Types of other packages may have faults of their own.
  const ours = good.stdout.split("\n").filter((line) => /^(good\.ts|node_modules\/palisade-kv)/.test(line));
  assert.deepEqual(ours, []);
  const bad = await check(
    "bad",
    `import { PalisadeError } from "palisade-kv";\nexport const n: number = PalisadeError;\n`,
  );
  assert.match(bad.stdout, /^bad\.ts.*TS2322/m, "types are more than any");
});
