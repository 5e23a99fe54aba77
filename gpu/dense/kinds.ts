/** A stage's text for one tensor type. */
import type { ShaderFile } from "../device.ts";

/** Numbers of the tensor types whose weights the products read as they stand in the file. */
export const KINDS: readonly number[] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30, 39];

/** Texts that were made, by the file they were made of. */
const made = new WeakMap<ShaderFile, Map<string, ShaderFile>>();

/**
 * The file with each `switch KIND` replaced by its case for `kind`, which is what a compiler should do with the constant:
 * some translate every branch first, and take seconds. `exact`: without the variants of `f16`.
 */
export function ofKind(file: ShaderFile, kind: number, exact: boolean): ShaderFile {
  const known = made.get(file) ?? new Map<string, ShaderFile>(), key = `${kind} ${exact}`;
  made.set(file, known);
  let found = known.get(key);
  if (!found) {
    const text = exact ? withoutVariants(file.text) : file.text;
    known.set(key, found = { name: `${file.name}, type ${kind}`, text: onlyCase(text, kind) });
  }
  return found;
}

/** Cases are indented by four, as `multiply.wgsl` has them; a comment before one goes with them. */
function onlyCase(text: string, kind: number): string {
  return text.replace(/ {2}switch KIND \{\n([\s\S]*?)\n {2}\}\n/g, (_, all: string) => {
    const cases = all.split(/\n(?= {4}(?:case|default|\/\/))/).filter((each) => !/^ *\/\//.test(each));
    const own = new RegExp(`^ {4}case [^{]*\\b${kind}u\\b`);
    const found = cases.find((each) => own.test(each)) ?? cases.find((each) => /^ {4}default/.test(each))!;
    return `  ${found.slice(found.indexOf("{"))}\n`;
  });
}

function withoutVariants(text: string): string {
  return text.replace(/ *\/\/ f16: .*$/gm, "");
}
