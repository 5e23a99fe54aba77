/**
 * Files of settings: a project's, `palisade.toml` or `palisade.json` in the current folder, or in the nearest folder
 * above it up to the root of its repository; and the user's, in the folder of configurations.
 */
import { dirname, resolve } from "node:path";
import { inputError, PalisadeError } from "../../core/errors.ts";
import { hostOf } from "../../runtime/host.ts";
import type { Io } from "../io.ts";

/** Names of a file of settings, of which a folder has one at most. */
const NAMES = ["palisade.toml", "palisade.json"] as const;
/** What names no file at all. */
export const NO_FILES = "none";
/** More than anybody types. */
const LARGEST = 1 << 20;
const VARIABLE = "PALISADE_CONFIG";

/** A file of settings that was read. */
export interface SettingsFile {
  readonly level: "project" | "user";
  /** Absolute. */
  readonly path: string;
  /** The folder that relative paths in it start from. */
  readonly folder: string;
  /** Named by the user, not found. */
  readonly named: boolean;
  readonly content: Readonly<Record<string, unknown>>;
}
/**
 * The files that apply: the one `named` by `--config` or PALISADE_CONFIG instead of the project's, then the user's; none
 * for `none`. PalisadeErrors input `settings.syntax`, `settings.two-files`, `settings.missing`, `file.*`.
 */
export async function settingsFiles(named: string | undefined, io: Io): Promise<SettingsFile[]> {
  const said = named ?? (io.runtime.environment(VARIABLE) || undefined);
  if (said === NO_FILES) return [];
  const asked = said && resolve(io.folder, said);
  const project = asked ?? await projectFile(io), user = await fileIn(userFolder(io), io);
  const read = async (path: string | undefined, level: SettingsFile["level"]) =>
    path === undefined ? [] : [{ level, named: path === asked, ...await readSettings(path, io) }];
  return [...await read(project, "project"), ...(user === project ? [] : await read(user, "user"))];
}

/** The user's folder: `XDG_CONFIG_HOME/palisade`, `~/.config/palisade`, on Windows `APPDATA\palisade`. */
export function userFolder({ runtime }: Io): string {
  const host = hostOf(runtime, "settings"), xdg = runtime.environment("XDG_CONFIG_HOME");
  if (xdg?.startsWith("/")) return host.join(xdg, "palisade");
  const roaming = runtime.platform.startsWith("win32") ? runtime.environment("APPDATA") : undefined;
  return roaming ? host.join(roaming, "palisade") : host.join(host.homeFolder, ".config", "palisade");
}

/** The project's file. Above the current folder only inside a repository: other folders may be anybody's. */
async function projectFile(io: Io): Promise<string | undefined> {
  const host = hostOf(io.runtime, "settings"), own = await fileIn(io.folder, io);
  if (own !== undefined) return own;
  let nearest: string | undefined;
  for (let folder = io.folder;; folder = dirname(folder)) {
    nearest ??= await fileIn(folder, io);
    if (await host.info(host.join(folder, ".git"))) return nearest;
    if (folder === dirname(folder)) return undefined;
  }
}

async function fileIn(folder: string, { runtime }: Io): Promise<string | undefined> {
  const host = hostOf(runtime, "settings"), paths = NAMES.map((name) => host.join(folder, name));
  const there = await Promise.all(paths.map(async (path) => await host.info(path) !== undefined));
  if (there.every((each) => each)) {
    const message = `There are two files of settings in ${folder}, ${NAMES.join(" and ")}: want one`;
    throw inputError("settings.two-files", message, paths[1]);
  }
  return paths[there.indexOf(true)];
}

async function readSettings(path: string, io: Io): Promise<Pick<SettingsFile, "path" | "folder" | "content">> {
  const text = await io.runtime.readText(path, { maxBytes: LARGEST, signal: io.signal });
  return { path, folder: dirname(path), content: await parse(path, text) };
}

/** @throws PalisadeError input `settings.syntax`, with the line where there is one. */
async function parse(path: string, text: string): Promise<Record<string, unknown>> {
  let content: unknown;
  try {
    content = path.endsWith(".json") ? JSON.parse(text) : (await import("smol-toml")).parse(text);
  } catch (error) {
    const { line, column, message } = error as { line?: number; column?: number; message: string };
    const place = line === undefined ? "" : `, line ${line}, column ${column}`;
    const reason = message.split("\n")[0].replace(/^Invalid TOML document: /, "");
    throw new PalisadeError("input", "settings.syntax", `Can't read the settings of ${path}${place}: ${reason}`, {
      where: path,
      cause: error,
    });
  }
  if (isSection(content)) return content;
  throw inputError("settings.syntax", `Can't read the settings of ${path}: want an object of settings`, path);
}

/** A table of TOML, or an object of JSON. */
export function isSection(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}
