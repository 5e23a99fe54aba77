/** Paths in files of settings start from the file's folder. */
import { isAbsolute, join } from "node:path";
import { type OptionSpec, takesFile } from "../options.ts";

/**
 * The text as an option gets it. Where it is always a file, a relative path starts from `folder`; where it may be a name
 * too (`name|file`), it is a path when it begins with `./` or `../`.
 */
export function hostPathLike(text: string, spec: OptionSpec, folder: string | undefined): string {
  if (folder === undefined || !takesFile(spec) || text === "-" || isAbsolute(text)) return text;
  return spec.value === "file" || /^\.{1,2}[/\\]/.test(text) ? join(folder, text) : text;
}
