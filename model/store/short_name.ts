/** What a model is called in reports: people know their files, not what a converter wrote into `general.name`. */
import { MODELS } from "./registry.ts";

/** The name of the registry, or the file's without its ending, its part number and the folder it lies in; of a URL too. */
export function shortName(path: string): string {
  const file = path.replace(/^(https?:[^?#]*).*$/, "$1").split(/[\\/]/).at(-1)!;
  const named = MODELS.find((model) => model.file === file);
  return named?.name ?? (file.replace(/(-\d{5}-of-\d{5})?\.gguf$/i, "") || path);
}

/** The registry's name of a file with this SHA-256. */
export function nameOfHash(sha256: string): string | undefined {
  return MODELS.find((model) => model.sha256 === sha256)?.name;
}
