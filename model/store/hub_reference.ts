/**
 * Any GGUF on the Hugging Face hub, named `OWNER/REPOSITORY[:QUANT]`: which files that means, pinned by revision, size
 * and SHA-256 as the hub lists them.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import { adviceFor } from "../../core/policy/nearest_name.ts";
import type { NamedModel } from "./registry.ts";

export interface HubReference {
  /** As the user wrote it. */
  readonly text: string;
  /** `OWNER/REPOSITORY`. */
  readonly repository: string;
  /** `Q4_K_M`, or a file's name; undefined when the user leaves it to us. */
  readonly quant?: string;
}

/** A file as the hub lists it. */
export interface HubFile {
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  /** SHA-256, lower-case hexadecimal; the hub has it for large files. */
  readonly sha256?: string;
}

/** Taken when the user names no quantisation, first come: what most people run, then what is nearest to it. */
const PREFERRED = ["Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q8_0", "MXFP4", "Q6_K", "BF16", "F16", "F32"];

/** Files beside a model's weights that are no language model. */
const NO_MODEL = /(^|[-._/])(mmproj|imatrix)([-._]|$)/i;
const SPLIT = /-(\d{5})-of-(\d{5})$/;

/** The reference that a text is, by its form; undefined for anything else (`a.gguf`, `./a/b`, `a/b/c`). */
export function hubReference(text: string): HubReference | undefined {
  const found = /^([A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*)(?::([A-Za-z0-9][\w.-]*))?$/.exec(text);
  if (!found || (found[2] === undefined && /\.gguf$/i.test(text))) return undefined;
  return { text, repository: found[1], quant: found[2] };
}

/** One of a repository's models: its quantisation, and its files in order. */
interface Choice {
  readonly quant: string;
  readonly files: readonly HubFile[];
}

/**
 * The files that a reference means, in order: one, or all parts of a split model.
 * @throws PalisadeError input `hub.no-gguf`, `hub.quant` (none or several of that name, parts missing) with what there is.
 */
export function chooseFiles(reference: HubReference, listed: readonly HubFile[]): readonly HubFile[] {
  const choices = choicesOf(listed);
  const quants = [...new Set(choices.map(({ quant }) => quant))];
  if (choices.length === 0) {
    throw refuse("hub.no-gguf", reference, "the repository has no GGUF of a language model");
  }
  const wanted = reference.quant ?? PREFERRED.find((quant) => quants.includes(quant)) ??
    (choices.length === 1 ? choices[0].quant : undefined);
  if (wanted === undefined) throw refuse("hub.quant", reference, `name one of ${quants.join(", ")} after a colon`);
  const found = choices.filter(({ quant, files }) =>
    quant.toUpperCase() === wanted.toUpperCase() || files.some(({ path }) => baseOf(path) === wanted)
  );
  if (found.length === 0) {
    throw refuse("hub.quant", reference, adviceFor(wanted, quants, `there is ${quants.join(", ")}`));
  }
  if (found.length > 1) {
    const names = found.map(({ files }) => baseOf(files[0].path));
    throw refuse(
      "hub.quant",
      reference,
      `several files are ${wanted}: name one of ${names.join(", ")} after the colon`,
    );
  }
  return whole(reference, found[0].files);
}

/** Files grouped by model; parts of a split one together, in order. */
function choicesOf(listed: readonly HubFile[]): Choice[] {
  const groups = new Map<string, HubFile[]>();
  for (const file of listed) {
    if (!/\.gguf$/i.test(file.path) || NO_MODEL.test(file.path)) continue;
    const stem = file.path.replace(/\.gguf$/i, "").replace(SPLIT, "");
    groups.set(stem, [...groups.get(stem) ?? [], file]);
  }
  return [...groups].map(([stem, files]) => ({
    quant: quantOf(stem) ?? baseOf(stem),
    files: files.sort((a, b) => (a.path < b.path ? -1 : 1)),
  }));
}

/** `Q4_K_M` of `Model-1B-q4_k_m`. */
function quantOf(stem: string): string | undefined {
  const found = /(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|FP16|F32|FP32))$/i.exec(baseOf(stem));
  return found?.[1].toUpperCase().replace(/^FP(?=\d)/, "F");
}

function baseOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

function whole(reference: HubReference, files: readonly HubFile[]): readonly HubFile[] {
  const count = Number(SPLIT.exec(files[0].path.replace(/\.gguf$/i, ""))?.[2] ?? 1);
  if (files.length === count) return files;
  throw refuse("hub.quant", reference, `the repository has ${files.length} of its ${count} parts`);
}

/** The files as models that can be fetched: named after their repository, so that two of one name don't meet. */
export function pinned(reference: HubReference, revision: string, files: readonly HubFile[]): readonly NamedModel[] {
  return files.map(({ path, size, sha256 }) => {
    if (sha256 === undefined) throw refuse("hub.no-gguf", reference, `the hub knows no SHA-256 of ${path}`);
    return {
      name: reference.text,
      summary: `${baseOf(path)} of ${reference.repository}`,
      licence: "as the repository says",
      file: `${reference.repository.replace("/", "--")}--${baseOf(path)}`,
      size,
      sha256,
      hub: { repository: reference.repository, revision, path },
    };
  });
}

function refuse(code: string, { text }: HubReference, problem: string): PalisadeError {
  return inputError(code, `Can't take ${text} from the hub: ${problem}`, text);
}
