/** What files that `palisade calibrate` found for a model say of themselves, and how they are found again. */
import { inputError, option, type PalisadeError, say } from "../../core/errors.ts";
import { hostOf } from "../../runtime/host.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { ModelConfig } from "../config.ts";
import { gateFolder, type GateSubject } from "../gate/find.ts";

/** For which model, and on what. */
export interface FoundInfo {
  readonly format: number;
  readonly model: {
    readonly name: string;
    /** SHA-256 of the model file, hexadecimal. */
    readonly sha256: string;
    readonly architecture: string;
  };
  readonly calibration: { readonly texts: readonly string[]; readonly tokens: number; readonly seed: number };
}

/** What is read: the metadata's key, its only format, and how what is wrong is said. */
interface InfoForm {
  readonly key: string;
  readonly format: number;
  refuse(code: "format" | "metadata", reason: string): PalisadeError;
}

/** The JSON of a metadata key. @throws what `refuse` makes: `format` for other files and versions, `metadata`. */
export function parseFoundInfo<Info extends FoundInfo>(text: string | undefined, form: InfoForm): Info {
  const { key, format, refuse } = form;
  if (text === undefined) throw refuse("format", `there is no ${key} in its metadata; it is some other file`);
  let info: Partial<FoundInfo> | null;
  try {
    info = JSON.parse(text);
  } catch (error) {
    throw refuse("metadata", `its ${key} is no JSON: ${(error as Error).message}`);
  }
  if (info?.format !== format) throw refuse("format", `it has format ${info?.format}; ${format} is read`);
  const { model, calibration } = info;
  const texts = [model?.name, model?.sha256, model?.architecture].every((each) => typeof each === "string");
  if (!texts || !/^[0-9a-f]{64}$/.test(model!.sha256) || !Array.isArray(calibration?.texts)) {
    throw refuse("metadata", "want model with name, SHA-256 and architecture, and calibration");
  }
  return info as Info;
}

/** Files of one kind, and what is said where there is none. */
interface FoundKind<Found, From> {
  readonly suffix: string;
  read(from: From | string, runtime: Runtime): Promise<Found>;
  /** Refuses one of another model. */
  check(found: Found, config: ModelConfig, sha256: string): void;
  /** Where there is none: the error's code, what is missing, and which command makes it. */
  readonly none: { readonly code: string; readonly what: string; readonly advice: string };
}

/**
 * The file that is named, or the model's own ({@link findOwn}).
 * @throws PalisadeError input `none.code`, and what the kind's `read` and `check` throw.
 */
export async function findNamedOrOwn<Found extends Identified, From = string>(
  model: GateSubject,
  runtime: Runtime,
  { suffix, read, check, none }: FoundKind<Found, From>,
  from?: From | string,
): Promise<Found> {
  const found = from === undefined ? await findOwn(model, runtime, suffix, read) : await read(from, runtime);
  if (!found) {
    const message = say`No ${none.what} are known of ${model.config.name}: ${none.advice}`;
    throw inputError(none.code, message, option("policy"));
  }
  check(found, model.config, await model.identity());
  return found;
}

/** A file that says of which model it is. */
interface Identified {
  readonly info: { readonly model: Pick<FoundInfo["model"], "sha256"> };
}

/**
 * The first file in the folder for gates whose name ends in `suffix` and that says it is of this model's file; undefined
 * where there is none, or no files.
 */
async function findOwn<Found extends Identified>(
  model: Pick<GateSubject, "identity">,
  runtime: Runtime,
  suffix: string,
  read: (path: string, runtime: Runtime) => Promise<Found>,
): Promise<Found | undefined> {
  if (!runtime.host) return undefined;
  const host = hostOf(runtime, `look for *${suffix}`), folder = gateFolder(runtime), sha256 = await model.identity();
  for (const name of (await host.list(folder)).sort().filter((each) => each.endsWith(suffix))) {
    const found = await read(host.join(folder, name), runtime).catch(() => undefined);
    if (found?.info.model.sha256 === sha256) return found;
  }
}
