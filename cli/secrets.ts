/** The secret of snapshots, as commands are told of it: a file's, the environment's, or one that is typed. */
import { inputError, PalisadeError } from "../core/errors.ts";
import type { ByteSource } from "../model/snapshot/bytes.ts";
import { type OpenedSnapshot, readHeader } from "../model/snapshot/restore.ts";
import { keySecret, passphraseSecret, type Secret } from "../model/snapshot/seal/key.ts";
import type { Io } from "./io.ts";
import type { OptionTable, Values } from "./options.ts";
import { idle } from "./reading.ts";

/** What opens secret snapshots. A passphrase is never a value of an option: others can read those. */
export const SECRET = {
  keyFile: {
    value: "file",
    help: "the key of secret snapshots",
    conflicts: ["passphraseFile"],
    rare: true,
    personal: true,
    more: "the key of secret snapshots: `palisade snapshots key FILE` makes one",
  },
  passphraseFile: {
    value: "file",
    help: "their passphrase, its first line",
    rare: true,
    personal: true,
  },
} satisfies OptionTable;

/** How snapshots are made secret. */
export const PROTECT = {
  encrypt: {
    help: "encrypt the snapshot; asks for a passphrase",
    personal: true,
  },
  cloak: {
    help: "hide its rows by KV-Cloak instead, or as well",
    rare: true,
    personal: true,
  },
} satisfies OptionTable;

type SecretOptions = Values<typeof SECRET>;

/** The variable that may hold a passphrase. */
const VARIABLE = "PALISADE_PASSPHRASE";
/** A key file has up to 64 digits and blanks. */
const LARGEST_KEY_FILE = 256;
/** Longer than any line that somebody types. */
const LARGEST_PASSPHRASE_FILE = 65536;

/** What was given without asking anybody; undefined when nothing was. PalisadeErrors `secret.*`, `file.*`, `text.*`. */
export async function givenSecret({ keyFile, passphraseFile }: SecretOptions, io: Io): Promise<Secret | undefined> {
  if (keyFile !== undefined) return keySecret(await startOf(keyFile, io), keyFile);
  if (passphraseFile !== undefined) {
    const text = await io.runtime.readText(passphraseFile, { maxBytes: LARGEST_PASSPHRASE_FILE, signal: io.signal });
    return passphrase(text.split(/\r?\n/, 1)[0], passphraseFile);
  }
  const variable = io.runtime.environment(VARIABLE);
  return variable === undefined ? undefined : passphrase(variable, VARIABLE);
}

function passphrase(text: string, where: string): Secret {
  if (text === "") {
    throw inputError("secret.empty", `There is no passphrase in ${where}: its first line is empty`, where);
  }
  return passphraseSecret(text);
}

/** The file, or of a larger one more than a key has, which is then refused by its size. */
async function startOf(path: string, io: Io): Promise<Uint8Array> {
  const file = await io.runtime.openFile(path);
  try {
    return await file.read(0, Math.min(file.size, LARGEST_KEY_FILE + 1));
  } finally {
    await file.close();
  }
}

/** A secret to make a snapshot by: given, or typed twice. @throws PalisadeError usage `secret.missing`, `secret.differs`. */
export async function newSecret(options: SecretOptions, io: Io): Promise<Secret> {
  const given = await givenSecret(options, io);
  if (given) return given;
  if (!io.askSecret) throw missing();
  const first = await io.askSecret("Passphrase for the snapshot: ");
  if (first === await io.askSecret("The same again: ")) return passphraseSecret(first);
  throw new PalisadeError("usage", "secret.differs", "The two passphrases differ", { where: "passphrase" });
}

/** The secret for `read` and `ask`: one to make snapshots by, or what is given for opening some. */
export async function secretFor(options: SecretOptions & Values<typeof PROTECT>, io: Io): Promise<Secret | undefined> {
  return options.encrypt ? await newSecret(options, io) : await givenSecret(options, io);
}

/**
 * Opens something with what was given; where it turns out to be secret and nothing was given, with what is typed then.
 * @throws PalisadeErrors of `open`; usage `secret.missing` where nobody can be asked.
 */
export async function withSecret<T>(
  given: Secret | undefined,
  io: Io,
  open: (secret: Secret | undefined) => Promise<T>,
): Promise<T> {
  try {
    return await open(given);
  } catch (error) {
    const wanted = error instanceof PalisadeError && /^(seal|cloak)\.secret$/.test(error.code);
    if (!wanted || given) throw error;
    if (!io.askSecret) throw error.again({ more: `: ${WAYS}` });
    return await open(passphraseSecret(await io.askSecret("Passphrase of the snapshot: ")));
  }
}

/** The same for a command that has only the options. */
export async function opened<T>(
  options: SecretOptions,
  io: Io,
  open: (secret: Secret | undefined) => Promise<T>,
): Promise<T> {
  return await withSecret(await givenSecret(options, io), io, open);
}

/** The header of a snapshot, and the secret by which it was opened. */
export interface OpenedHeader {
  readonly header: OpenedSnapshot;
  readonly secret?: Secret;
}

/** Opens the header of a snapshot: before a model is loaded for it, that is a matter of milliseconds. */
export async function headerOf(source: ByteSource, io: Io, given: Secret | undefined): Promise<OpenedHeader> {
  return await withSecret(given, io, async (secret) => {
    return { header: await readHeader(source, { runtime: io.runtime, secret }), secret };
  });
}

const WAYS = `--key-file, --passphrase-file or ${VARIABLE}`;

function missing(): PalisadeError {
  const message = `There is no passphrase, and nobody to ask for one: want ${WAYS}`;
  return new PalisadeError("usage", "secret.missing", message, { where: "--encrypt" });
}

/** Refuses files of secrets that nothing would be opened or made by. @throws PalisadeError usage. */
export function refuseIdleSecret({ keyFile, passphraseFile }: SecretOptions, used: boolean): void {
  if (used) return;
  if (keyFile !== undefined) throw idle("key-file", "There is nothing to open or to make by a key: add --encrypt");
  if (passphraseFile !== undefined) {
    throw idle("passphrase-file", "There is nothing to open or to make by it: add --encrypt");
  }
}
