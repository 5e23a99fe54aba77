/** palisade as a page gets it: built as for npm, then put into a few files by a bundler. */
import { copyFileSync, cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { build } from "esbuild";
import { build as buildByVite } from "vite";
import ts from "typescript";
import { repositoryFiles, ROOT } from "../../tools/repository.ts";

const ROOMS = /^(mod\.ts$|(core|wasm|gpu|model|runtime|evaluate)\/.*\.ts$)/;

/** What is started by URL, and so must lie beside the bundle: docs/browsers.md says so. */
const WORKERS = {
  sandbox_browser: "runtime/sandbox_browser",
  template_worker: "model/text/template_worker",
  thread_browser: "runtime/thread_browser",
  pool_worker: "wasm/threads/pool_worker",
};

const COMPILER = {
  module: ts.ModuleKind.ESNext,
  target: ts.ScriptTarget.ES2023,
  rewriteRelativeImportExtensions: true,
  verbatimModuleSyntax: true,
};

/** The package in `folder`, as npm would install it: `dist/` and package.json, the packages it needs within reach. */
async function writePackage(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  for (const source of (await repositoryFiles()).filter((file) => ROOMS.test(file))) {
    const target = join(folder, "dist", source.replace(/\.ts$/, ".js"));
    mkdirSync(dirname(target), { recursive: true });
    const text = readFileSync(join(ROOT, source), "utf8");
    writeFileSync(target, ts.transpileModule(text, { compilerOptions: COMPILER, fileName: source }).outputText);
  }
  cpSync(join(ROOT, "package.json"), join(folder, "package.json"));
  symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"), "dir");
}

/**
 * Writes `palisade.js` into `folder`, with its workers and onnxruntime's WebAssembly beside it. Returns what the bundler
 * took in: paths from `folder`. Fails when anything wants a module that browsers don't have.
 */
export async function bundleForBrowsers(folder: string): Promise<string[]> {
  await writePackage(folder);
  const { metafile } = await build({
    absWorkingDir: folder,
    entryPoints: [
      { in: "dist/mod.js", out: "palisade" },
      ...Object.entries(WORKERS).map(([out, source]) => ({ in: `dist/${source}.js`, out })),
    ],
    bundle: true,
    format: "esm",
    platform: "browser",
    outdir: folder,
    metafile: true,
    logLevel: "silent",
  });
  const wasm = "ort-wasm-simd-threaded.wasm";
  copyFileSync(join(ROOT, "node_modules/onnxruntime-web/dist", wasm), join(folder, wasm));
  return Object.keys(metafile.inputs);
}

/** The same by Vite, with the package where npm puts it. */
export async function bundleByVite(folder: string): Promise<void> {
  await writePackage(join(folder, "node_modules/palisade-kv"));
  const of = (source: string) => join(folder, "node_modules/palisade-kv/dist", `${source}.js`);
  writeFileSync(join(folder, "page.js"), `export * from "palisade-kv";\n`);
  await buildByVite({
    root: folder,
    configFile: false,
    logLevel: "silent",
    build: {
      target: "es2023",
      outDir: folder,
      emptyOutDir: false,
      reportCompressedSize: false,
      minify: false,
      rollupOptions: {
        input: {
          palisade: join(folder, "page.js"),
          ...Object.fromEntries(Object.entries(WORKERS).map(([name, source]) => [name, of(source)])),
        },
        // The page's own script is what others import.
        preserveEntrySignatures: "strict",
        output: { format: "es", entryFileNames: "[name].js", chunkFileNames: "[name]-[hash].js" },
      },
    },
  });
  const wasm = "ort-wasm-simd-threaded.wasm";
  copyFileSync(join(ROOT, "node_modules/onnxruntime-web/dist", wasm), join(folder, wasm));
}
