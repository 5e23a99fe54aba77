/**
 * Writes the texts of a folder's `.wgsl` files into a module beside them, `shaders.ts`, so that every runtime, bundle and
 * binary has them without reading a file. `deno task check` says when one is stale.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { ROOT } from "./repository.ts";

/** Folders with stages. */
export const SHADER_FOLDERS = ["gpu/backend", "gpu/dense"];

/** What the folder's module must say; `undefined` where there are no stages. */
export function shaderModule(folder: string): string | undefined {
  const path = join(ROOT, folder);
  const files = existsSync(path) ? readdirSync(path).filter((name) => name.endsWith(".wgsl")).sort() : [];
  if (files.length === 0) return undefined;
  const lines = files.map((file) => {
    const text = readFileSync(join(path, file), "utf8");
    const name = file.replace(/\.wgsl$/, "").toUpperCase();
    const quoted = text.replace(/[\\`]|\$\{/g, (found) => `\\${found}`);
    return `\nexport const ${name}: ShaderFile = {\n  name: "${
      folder.slice(4)
    }/${file}",\n  text: \`${quoted}\`,\n};\n`;
  });
  const head = `/** Made from the .wgsl files beside it by \`deno run -A tools/build_shaders.ts\`: don't edit. */
import type { ShaderFile } from "../stage.ts";
`;
  return head + lines.join("");
}

/** Folders whose module is not what it must be. */
export function staleShaders(): string[] {
  return SHADER_FOLDERS.filter((folder) => {
    const wanted = shaderModule(folder), path = join(ROOT, folder, "shaders.ts");
    return wanted !== (existsSync(path) ? readFileSync(path, "utf8") : undefined);
  });
}

if (import.meta.main) {
  for (const folder of SHADER_FOLDERS) {
    const text = shaderModule(folder);
    if (text) writeFileSync(join(ROOT, folder, "shaders.ts"), text);
  }
  process.exitCode = 0;
}
