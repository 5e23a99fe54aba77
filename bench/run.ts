/**
 * `deno task bench [NAME …]`: lists the benches, or runs one with the arguments that follow its name. Each bench is a
 * program of its own, so that what it measures is its own process; figures that were kept are in `bench/results/`.
 */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import process from "node:process";

const FOLDER = new URL(".", import.meta.url);
const names = readdirSync(FOLDER)
  .filter((file) => file.endsWith(".ts") && file !== "run.ts")
  .map((file) => file.slice(0, -3))
  .sort();
const [name, ...parameters] = process.argv.slice(2);

if (name === undefined) {
  for (const each of names) console.log(`${each.padEnd(12)} ${firstSentence(each)}`);
} else if (names.includes(name)) {
  const script = fileURLToPath(new URL(`${name}.ts`, FOLDER));
  const { status } = spawnSync(process.execPath, ["run", "-A", script, ...parameters], { stdio: "inherit" });
  process.exit(status ?? 1);
} else {
  console.error(`There is no bench ${name}: want one of ${names.join(", ")}`);
  process.exit(2);
}

/** The first sentence of a bench's header. */
function firstSentence(bench: string): string {
  const text = readFileSync(new URL(`${bench}.ts`, FOLDER), "utf8");
  const header = /\/\*\*([\s\S]*?)\*\//.exec(text)?.[1].replace(/\s*\n\s*\* ?/g, " ").trim() ?? "";
  return /^.*?[.:](?=\s|$)/.exec(header)?.[0] ?? header;
}
