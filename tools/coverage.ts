/** Branch coverage per group of files, from the lcov report of `deno coverage`. */
import { existsSync, readFileSync } from "node:fs";
import { relative } from "node:path";
import ts from "typescript";

/** Files whose branches are gated together. */
export interface CoverageGroup {
  readonly name: string;
  readonly pattern: RegExp;
}

/** Least share of branches taken, percent. */
export const MIN_BRANCHES = 90;

/** The pure core and every parser of outside data. */
export const GROUPS: readonly CoverageGroup[] = [
  { name: "core/", pattern: /^core\// },
  { name: "model/file/", pattern: /^model\/file\// },
  { name: "model/dump/", pattern: /^model\/dump\// },
  { name: "model/text/", pattern: /^model\/text\// },
  { name: "snapshot files", pattern: /^model\/snapshot\/(format|hash|identity|layers|reduced|rows|state|tokens)\.ts$/ },
  { name: "gate files", pattern: /^model\/gate\/file\.ts$/ },
  { name: "sealed and cloaked snapshots", pattern: /^model\/snapshot\/(seal\/|cloak\/(cloak|secrets|file)\.ts$)/ },
  { name: "budget and grammar parsers", pattern: /^(?!tests\/)(.*\/)?(budget|grammar)[^/]*\.ts$/ },
];

/**
 * The test files whose coverage counts: those named after a file of a group. The others run without being measured,
 * because counting branches makes number crunching five to ten times slower.
 */
export const MEASURED_TESTS =
  /^tests\/(core\/(?!backend_|cache_)|model\/(gguf|tokenizer|special_tokens|template|prompt|frames|thoughts|safetensors|gate|dump|snapshot\/(seal|cloak|format|forms|identity|refusals))|cli\/(budget|evict(?=_test)))[^/]*_test\.ts$/;

export interface GroupCoverage {
  readonly name: string;
  readonly files: number;
  readonly branches: number;
  readonly taken: number;
  /** Percent, 100 when there are no branches. */
  readonly percent: number;
  /** Files with code that no test loads. */
  readonly unloaded: readonly string[];
  /** The file with the lowest share, and that share. */
  readonly worst: { readonly file: string; readonly percent: number } | undefined;
  readonly ok: boolean;
}

interface Branches {
  branches: number;
  taken: number;
}

/** Branches and branches taken, by path relative to `root`. */
export function parseLcov(lcov: string, root: string): Map<string, Branches> {
  const files = new Map<string, Branches>();
  let current: Branches = { branches: 0, taken: 0 };
  for (const line of lcov.split("\n")) {
    if (line.startsWith("SF:")) {
      current = { branches: 0, taken: 0 };
      files.set(relative(root, line.slice(3)).replaceAll("\\", "/"), current);
    } else if (line.startsWith("BRDA:")) {
      const hits = line.slice(line.lastIndexOf(",") + 1);
      current.branches++;
      if (hits !== "-" && hits !== "0") current.taken++;
    }
  }
  return files;
}

/** True for a file that compiles to nothing that runs: types and re-exports only. */
function hasNoCode(path: string): boolean {
  const { outputText } = ts.transpileModule(readFileSync(path, "utf8"), {
    compilerOptions: { module: ts.ModuleKind.ESNext, removeComments: true, verbatimModuleSyntax: true },
  });
  return outputText.replace(/export (\{[^}]*\}|\*( as \w+)?)( from "[^"]*")?;?|import "[^"]*";?|\s/g, "") === "";
}

const percentOf = ({ branches, taken }: Branches) => branches === 0 ? 100 : (100 * taken) / branches;

/** Measures every group over `sources`, the tracked TypeScript files relative to `root`. */
export function coverageByGroup(lcov: string, root: string, sources: readonly string[]): GroupCoverage[] {
  const measured = parseLcov(lcov, root);
  return GROUPS.map(({ name, pattern }) => {
    const files = sources.filter((file) => pattern.test(file) && existsSync(`${root}/${file}`));
    const sum: Branches = { branches: 0, taken: 0 };
    const unloaded: string[] = [];
    let worst: GroupCoverage["worst"];
    for (const file of files) {
      const branches = measured.get(file);
      if (branches === undefined) {
        if (!hasNoCode(`${root}/${file}`)) unloaded.push(file);
        continue;
      }
      sum.branches += branches.branches;
      sum.taken += branches.taken;
      const percent = percentOf(branches);
      if (worst === undefined || percent < worst.percent) worst = { file, percent };
    }
    const percent = percentOf(sum);
    const ok = files.length > 0 && unloaded.length === 0 && percent >= MIN_BRANCHES;
    return { name, files: files.length, ...sum, percent, unloaded, worst, ok };
  });
}
