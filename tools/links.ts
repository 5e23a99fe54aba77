/** Dead links in Markdown: files and anchors are looked up, addresses outside only have to be well formed. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { ROOT } from "./repository.ts";

/** Markdown without fenced blocks, code spans and comments: what is left can hold links. */
function prose(markdown: string): string {
  return markdown.replace(/^(```|~~~)[\s\S]*?^\1.*$/gm, "").replace(/<!--[\s\S]*?-->/g, "").replace(/`[^`\n]*`/g, "");
}

/** The anchor a heading gets on the usual hosts: lower case, words joined by hyphens, repeated ones numbered. */
export function anchorsOf(markdown: string): Set<string> {
  const anchors = new Set<string>();
  const withoutFences = markdown.replace(/^(```|~~~)[\s\S]*?^\1.*$/gm, "");
  for (const [, heading] of withoutFences.matchAll(/^#{1,6}\s+(.*?)\s*#*$/gm)) {
    const text = heading.replace(/\[([^\]]*)\]\([^)]*\)/g, "$1").toLowerCase();
    const base = text.replace(/[^\p{L}\p{N}\p{M}_ -]/gu, "").replaceAll(" ", "-");
    let anchor = base;
    for (let count = 1; anchors.has(anchor); count++) anchor = `${base}-${count}`;
    anchors.add(anchor);
  }
  for (const [, id] of markdown.matchAll(/<[^>]*\s(?:id|name)="([^"]+)"/g)) anchors.add(id);
  return anchors;
}

/** Link targets: inline, images, reference definitions, HTML attributes, angle brackets. */
export function targetsOf(markdown: string): string[] {
  const text = prose(markdown);
  const patterns = [
    /\]\(\s*<?([^)\s>]+)>?(?:\s+["'(][^)]*)?\s*\)/g,
    /^\s{0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)/gm,
    /\s(?:href|src)="([^"]+)"/g,
    /<(https?:[^>\s]+)>/g,
  ];
  return patterns.flatMap((pattern) => [...text.matchAll(pattern)].map((match) => match[1]));
}

function externalProblem(target: string): string | undefined {
  if (target.startsWith("mailto:")) return undefined;
  const url = URL.canParse(target) ? new URL(target) : undefined;
  const wellFormed = url && /^https?:$/.test(url.protocol) && url.hostname.includes(".");
  return wellFormed ? undefined : "is no web address";
}

/** What is wrong with one link of `file` (relative to the root), or nothing. */
export function linkProblem(file: string, target: string): string | undefined {
  if (/^[a-z][a-z0-9+.-]*:/i.test(target)) return externalProblem(target);
  const [path, anchor] = target.split("#", 2);
  const absolute = path === "" ? join(ROOT, file) : join(ROOT, dirname(file), decodeURIComponent(path.split("?")[0]));
  if (path.startsWith("/") || relative(ROOT, absolute).startsWith("..")) return "points outside the project";
  if (!existsSync(absolute)) return "does not exist";
  if (!anchor || statSync(absolute).isDirectory() || !absolute.endsWith(".md")) return undefined;
  return anchorsOf(readFileSync(absolute, "utf8")).has(decodeURIComponent(anchor)) ? undefined : "has no such heading";
}

/** Dead links in the Markdown files among `files`. */
export function linkProblems(files: readonly string[]): string[] {
  const problems: string[] = [];
  for (const file of files.filter((name) => name.endsWith(".md"))) {
    for (const target of targetsOf(readFileSync(join(ROOT, file), "utf8"))) {
      const problem = linkProblem(file, target);
      if (problem) problems.push(`${file}: ${target} ${problem}`);
    }
  }
  return problems;
}
