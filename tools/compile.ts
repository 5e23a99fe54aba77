/**
 * One executable file with palisade and all it needs inside.
 *
 * In a Bun binary every module has the binary's own URL, so what is loaded by URL must be embedded by hand: the
 * WebAssembly files of onnxruntime-web (handed over through `env.wasm.wasmPaths`) and the modules that run in workers
 * (extra entry points, which `siblingModule` finds beside the binary's URL).
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, posix, resolve } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { findBun } from "./bun.ts";
import { killChildrenOnInterrupt, runChild } from "./child.ts";
import { repositoryFiles, ROOT } from "./repository.ts";

const USAGE = `deno task compile [--target bun|deno] [--output FILE]

  --target bun   (default) with the Bun that npm installed; works offline; for this platform
  --target deno  with deno compile, which downloads a runtime on first use: it needs the internet and is not part of
                 the test suite
  --output FILE  default ./palisade`;

const PRODUCT = /^(mod\.ts$|(core|backend|wasm|gpu|cache|model|runtime|evaluate|cli)\/)/;

/** Modules of the product that are started by URL, relative to the root. */
export async function workerModules(): Promise<string[]> {
  const found = new Set<string>();
  for (const file of (await repositoryFiles()).filter((name) => PRODUCT.test(name) && name.endsWith(".ts"))) {
    const code = readFileSync(join(ROOT, file), "utf8").replace(/\/\*[\s\S]*?\*\//g, "");
    for (const [, path] of code.matchAll(/\bsiblingModule\(\s*"([^"]+)"/g)) {
      found.add(posix.join(dirname(file), `${path}.ts`));
    }
  }
  return [...found].sort();
}

function entrySource(): string {
  const ort = join(ROOT, "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded");
  return `import { env } from ${JSON.stringify(join(ROOT, "node_modules/onnxruntime-web/dist/ort.node.min.mjs"))};
import mjs from ${JSON.stringify(`${ort}.mjs`)} with { type: "file" };
import wasm from ${JSON.stringify(`${ort}.wasm`)} with { type: "file" };
import { pathToFileURL } from "node:url";
env.wasm.wasmPaths = { mjs: pathToFileURL(mjs).href, wasm: pathToFileURL(wasm).href };
await import(${JSON.stringify(join(ROOT, "cli/main.ts"))});
`;
}

/** Writes `output` with Bun. Returns what went wrong, or nothing. */
export async function compileWithBun(output: string): Promise<string | undefined> {
  const bun = await findBun();
  if (bun === undefined) return "no Bun found; deno install puts one into node_modules";
  const folder = mkdtempSync(join(tmpdir(), "palisade-compile-"));
  try {
    const entry = join(folder, "palisade.ts");
    writeFileSync(entry, entrySource());
    const entries = [entry];
    for (const module of await workerModules()) {
      const wrapper = join(folder, posix.basename(module));
      if (entries.includes(wrapper)) return `two worker modules are called ${posix.basename(module)}`;
      const target = JSON.stringify(join(ROOT, module));
      writeFileSync(wrapper, `import * as module from ${target};\nexport default module.default;\n`);
      entries.push(wrapper);
    }
    const args = ["build", "--compile", "--external=onnxruntime-node", `--outfile=${resolve(output)}`, ...entries];
    const { code, stdout, stderr, killed } = await runChild(bun, args, { cwd: folder, timeout: 300 });
    return code === 0 ? undefined : killed || `${stdout}${stderr}`.trim();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Writes `output` with `deno compile`. Returns what went wrong, or nothing. */
export async function compileWithDeno(output: string): Promise<string | undefined> {
  const included = [...await workerModules(), "node_modules/onnxruntime-web/dist"].map((path) => `--include=${path}`);
  const args = ["compile", "-A", "--no-check", `--output=${resolve(output)}`, ...included, "cli/main.ts"];
  const { code, stderr, killed } = await runChild(process.execPath, args, { cwd: ROOT, timeout: 600, echo: true });
  return code === 0 ? undefined : killed || stderr.trim();
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      target: { type: "string", default: "bun" },
      output: { type: "string", default: "palisade" },
      help: { type: "boolean", default: false },
    },
  });
  const { target, output } = values;
  if (values.help || (target !== "bun" && target !== "deno")) {
    console.log(USAGE);
    return values.help ? 0 : 2;
  }
  const problem = target === "bun" ? await compileWithBun(output) : await compileWithDeno(output);
  console.log(problem === undefined ? `wrote ${output}` : `failed: ${problem}`);
  return problem === undefined ? 0 : 1;
}

if (import.meta.main) {
  killChildrenOnInterrupt();
  process.exitCode = await main();
}
