/**
 * One executable file with palisade and all it needs inside.
 *
 * In a Bun binary every module has the binary's own URL, so what is loaded by URL must be embedded by hand: the
 * WebAssembly files of onnxruntime-web (handed over through `env.wasm.wasmPaths`), the package's data (through
 * `embedPackageData`) and the modules that run in workers (extra entry points, which `siblingModule` finds beside the
 * binary's URL). Commands are chunks of their own, so that only what runs is read at the start.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, posix, resolve } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { findBun } from "./bun.ts";
import { DATA_FOLDERS } from "../runtime/package_data.ts";
import { killChildrenOnInterrupt, runChild } from "./child.ts";
import { repositoryFiles, ROOT } from "./repository.ts";

const USAGE = `deno task compile [--target bun|deno] [--output FILE]

  --target bun   (default) with the Bun that npm installed; works offline; for this platform
  --target deno  with deno compile, which downloads a runtime on first use; DENORT_BIN names one that is there
  --output FILE  default ./palisade`;

/** Files of the product, from the root. */
export const PRODUCT = /^(mod\.ts$|(core|wasm|gpu|model|runtime|evaluate|cli|web)\/)/;

interface WorkerModule {
  /** As given to `siblingModule`, without `./` and extension: where the binary must carry it. */
  readonly place: string;
  /** The source, relative to the root. */
  readonly source: string;
}

/** Modules of the product that are started by URL. Two at the same place throw an Error. */
export async function workerModules(): Promise<WorkerModule[]> {
  const found = new Map<string, string>();
  for (const file of (await repositoryFiles()).filter((name) => PRODUCT.test(name) && name.endsWith(".ts"))) {
    const code = readFileSync(join(ROOT, file), "utf8").replace(/\/\*[\s\S]*?\*\//g, "");
    for (const [, path] of code.matchAll(/\bsiblingModule\(\s*"([^"]+)"/g)) {
      const place = posix.normalize(path);
      const source = posix.join(dirname(file), `${path}.ts`);
      if ((found.get(place) ?? source) !== source) {
        throw new Error(`${source} and ${found.get(place)} would be at the same place in a binary: rename one`);
      }
      found.set(place, source);
    }
  }
  return [...found].map(([place, source]) => ({ place, source }));
}

/** The binary's first module: says where its WebAssembly and its data are, then runs the command line. */
async function entrySource(): Promise<string> {
  const files = (await repositoryFiles()).filter((name) => !name.endsWith(".md"));
  const data = Object.entries(DATA_FOLDERS).flatMap(([kind, folder]) =>
    files.filter((file) => file.startsWith(`${folder}/`)).map((file) => ({
      file,
      name: kind + file.slice(folder.length),
    }))
  );
  const quoted = (path: string) => JSON.stringify(join(ROOT, path));
  const ort = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded";
  return `import mjs from ${quoted(`${ort}.mjs`)} with { type: "file" };
import wasm from ${quoted(`${ort}.wasm`)} with { type: "file" };
${data.map(({ file }, i) => `import data${i} from ${quoted(file)} with { type: "file" };`).join("\n")}
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import { embedPackageData } from ${quoted("runtime/package_data.ts")};
import { configureOrt } from ${quoted("model/dense/ort/web.ts")};
configureOrt({ wasmPaths: { mjs: pathToFileURL(mjs).href, wasm: pathToFileURL(wasm).href } });
embedPackageData({ ${data.map(({ name }, i) => `${JSON.stringify(name)}: () => readFile(data${i})`).join(", ")} });
await import(${quoted("cli/main.ts")});
`;
}

/**
 * An entry point that is the module at `source`, at another place. `await import`, because a plain `import "…"` would be
 * dropped: package.json says the modules have no side effects.
 */
function wrapperSource(source: string): string {
  const path = JSON.stringify(join(ROOT, source));
  const hasDefault = /^export default\b/m.test(readFileSync(join(ROOT, source), "utf8"));
  return hasDefault ? `export { default } from ${path};\n` : `await import(${path});\n`;
}

/** Writes `output` with Bun. Returns what went wrong, or nothing. */
export async function compileWithBun(output: string): Promise<string | undefined> {
  const bun = await findBun();
  if (bun === undefined) return "no Bun found; deno install puts one into node_modules";
  const folder = mkdtempSync(join(tmpdir(), "palisade-compile-"));
  const write = (name: string, source: string): string => {
    const path = join(folder, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, source);
    return path;
  };
  try {
    const entries = [write("palisade.ts", await entrySource())];
    for (const { place, source } of await workerModules()) entries.push(write(`${place}.ts`, wrapperSource(source)));
    const args = [
      "build",
      "--compile",
      "--splitting",
      "--external=onnxruntime-node",
      `--outfile=${resolve(output)}`,
      ...entries,
    ];
    const { code, stdout, stderr, killed } = await runChild(bun, args, { cwd: folder, timeout: 300 });
    return code === 0 ? undefined : killed || `${stdout}${stderr}`.trim();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * Writes `output` with `deno compile`: the packages that the command line can reach, not all of node_modules. Returns
 * what went wrong, or nothing.
 */
export async function compileWithDeno(output: string): Promise<string | undefined> {
  const workers = (await workerModules()).map(({ source }) => source);
  // Deno doesn't see what is loaded late (`cli/list.ts`).
  const commands = readdirSync(join(ROOT, "cli/commands")).filter((name) => name.endsWith(".ts"));
  const late = ["cli/completion/here.ts", ...commands.map((name) => `cli/commands/${name}`)];
  const included = [...workers, ...late, ...Object.values(DATA_FOLDERS)].map((path) => `--include=${path}`);
  const packages = ["--node-modules-dir=none", "--exclude-unused-npm"];
  const args = ["compile", "-A", "--no-check", ...packages, `--output=${resolve(output)}`, ...included, "cli/main.ts"];
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
