/** `palisade snapshots list|show|verify|rm|prune`: what `read` and `ask` kept. */
import { inputError, PalisadeError } from "../../core/errors.ts";
import type { ByteSource } from "../../model/snapshot/bytes.ts";
import { EXTENSION } from "../../model/snapshot/folder_store.ts";
import { type Identity, IDENTITY_FIELDS } from "../../model/snapshot/identity.ts";
import { type OpenedSnapshot, readHeader } from "../../model/snapshot/restore.ts";
import { newKeyFile, type Secret } from "../../model/snapshot/seal/key.ts";
import type { SavedState } from "../../model/snapshot/state.ts";
import { storeSource } from "../../model/snapshot/store.ts";
import { writeWhole } from "../../runtime/output.ts";
import { command, type CommandBody } from "../command.ts";
import { EXIT, type Io } from "../io.ts";
import type { OptionTable, Values } from "../options.ts";
import { channelsText, mergeText, refitText } from "../print/closing_report.ts";
import { formatBytes, formatCount } from "../print/format.ts";
import { tableText } from "../print/table.ts";
import { opened, SECRET } from "../secrets.ts";
import { namedIn, openNamed, PLACE, sizeOf, wantCache } from "../snapshots.ts";

const { snapshots } = PLACE;
const LIST = { snapshots, json: { help: "as JSON" } } satisfies OptionTable;
const ONE = { ...LIST, ...SECRET } satisfies OptionTable;
const ONLY_PLACE = { snapshots } satisfies OptionTable;
const PRUNE = {
  snapshots,
  to: { value: "size", help: "bytes that may stay, 500MB or 2GiB; 0 removes all", read: sizeOf, required: true },
} satisfies OptionTable;

/** `palisade snapshots`. */
export const snapshotsCommand: CommandBody = {
  options: {},
  members: [
    command({ name: "list", summary: "snapshots that are kept", options: LIST, run: list }),
    command({
      name: "show",
      argument: "<name>",
      here: "snapshots",
      files: true,
      summary: "what a snapshot is of, by name or file",
      options: ONE,
      run: show,
    }),
    command({
      name: "verify",
      argument: "[names...]",
      here: "snapshots",
      files: true,
      summary: "check every byte of snapshots, by name or file; default all",
      options: ONE,
      run: verify,
    }),
    command({
      name: "rm",
      argument: "<names...>",
      here: "snapshots",
      summary: "remove snapshots",
      options: ONLY_PLACE,
      run: remove,
    }),
    command({
      name: "prune",
      summary: "remove those not used for longest",
      options: PRUNE,
      run: prune,
    }),
    command({
      name: "key",
      argument: "<file>",
      files: true,
      summary: "make a key for --key-file",
      options: {},
      run: makeKey,
    }),
  ],
};

/** A snapshot as lists show it. `problem`: why its header can't be read. */
interface Listed {
  readonly name: string;
  readonly bytes: number;
  /** Milliseconds since 1970. */
  readonly used: number;
  readonly label: string | null;
  readonly model: string | null;
  readonly tokens: number | null;
  readonly policy: string | null;
  readonly budget: string | null;
  readonly cacheType: string | null;
  readonly problem: string | null;
  /** It is sealed or cloaked, which is no damage. */
  readonly secret: boolean;
}

async function list(options: Values<typeof LIST>, io: Io): Promise<number> {
  const { store } = await wantCache({ ...options, snapshotsCap: undefined }, io);
  await using _ = store;
  const listed: Listed[] = [];
  for (const { name, size, used } of await store.list()) {
    const opened = await refusedOr(async () => await readHeader(await storeSource(store, name), io));
    listed.push({ name, bytes: size, used, ...described(opened) });
  }
  listed.sort((a, b) => b.used - a.used);
  if (options.json) io.out(`${JSON.stringify(listed, null, 2)}\n`);
  else io.out(listText(listed, store.place));
  return EXIT.ok;
}

async function refusedOr<T>(work: () => Promise<T>): Promise<T | PalisadeError> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof PalisadeError) return error;
    throw error;
  }
}

function described(opened: OpenedSnapshot | PalisadeError): Omit<Listed, "name" | "bytes" | "used"> {
  if (opened instanceof PalisadeError) {
    const unknown = { label: null, model: null, tokens: null, policy: null, budget: null, cacheType: null };
    return { ...unknown, problem: opened.message, secret: /^(seal|cloak)\.secret$/.test(opened.code) };
  }
  const { identity: { policy, budget, ...identity }, state: { label, modelName, tokens } } = opened;
  const cacheType = storedAs(identity);
  return { label, model: modelName, tokens, policy, budget, cacheType, problem: null, secret: false };
}

/** The type of what stays, which may be another than that of reading. */
function storedAs({ parameters, cacheType }: Pick<Identity, "parameters" | "cacheType">): string {
  return /\["rows","([^"]+)"\]/.exec(parameters)?.[1] ?? cacheType;
}

function listText(listed: readonly Listed[], place: string): string {
  if (listed.length === 0) return `No snapshots in ${place}\n`;
  const rows = listed.map(({ name, bytes, used, ...what }) => [
    name.length > 12 ? name.slice(0, 12) : name,
    what.secret ? "secret" : what.problem === null ? what.label! : "can't be read",
    what.model ?? "",
    what.tokens === null ? "" : formatCount(what.tokens),
    what.policy === null ? "" : `${what.policy}, ${what.budget}, ${what.cacheType}`,
    formatBytes(bytes),
    new Date(used).toISOString().slice(0, 16).replace("T", " "),
  ]);
  const total = listed.reduce((sum, { bytes }) => sum + bytes, 0);
  return `${tableText(["name", "text", "model", "tokens", "kept by", "size", "last used"], rows)}\n` +
    `${formatBytes(total)} in ${place}\n`;
}

async function show(options: Values<typeof ONE>, io: Io, [name]: readonly string[]): Promise<number> {
  await using source = await openNamed(name, { ...options, snapshotsCap: undefined }, io);
  const read = (secret?: Secret) => readHeader(source, { runtime: io.runtime, secret });
  const { file, identity, state } = await opened(options, io, read);
  if (options.json) {
    io.out(
      `${JSON.stringify({ name: file.name, bytes: file.size, sections: file.sections, identity, state }, null, 2)}\n`,
    );
    return EXIT.ok;
  }
  const { made, budget } = state;
  const lines: [string, string][] = [
    ["text", `${state.label || "not said"}, ${formatCount(state.tokens)} tokens`],
    ["size", `${formatBytes(file.size)}, ${file.sections.includes("text") ? "with" : "without"} the text's tokens`],
    ["kept", `${formatCount(budget.perHead)} entries per head on average (${identity.budget})`],
    ["made", `${made.at} by palisade ${made.version}, ${made.runtime}, kernels ${made.backend}, dense ${made.dense}`],
    ["cost", `${Math.round(state.ms.prefill + state.ms.evict)} ms of reading`],
    ...doneLines(state),
    ["stored as", storedAs(identity)],
    ...IDENTITY_FIELDS.map((field): [string, string] => [field, identity[field]]),
  ];
  io.out(lines.map(([what, value]) => `${what.padEnd(12)} ${value}\n`).join(""));
  return EXIT.ok;
}

/** What was done to what stays. */
function doneLines({ done: { effort, refit, merge, keyChannels } }: SavedState): [string, string][] {
  return [
    ...(effort ? [["effort", `${effort.effort}, for ${effort.bytes} of bytes: ${effort.policy}`] as const] : []),
    ...(refit ? [["refit", refitText(refit)] as const] : []),
    ...(merge ? [["merge", mergeText(merge)] as const] : []),
    ...(keyChannels ? [["channels", channelsText(keyChannels)] as const] : []),
  ].map(([what, text]) => [what, text]);
}

/** Reads everything that was named; exit code 3 when something is wrong with any of it. */
async function verify(options: Values<typeof ONE>, io: Io, names: readonly string[]): Promise<number> {
  const place = { ...options, snapshotsCap: undefined };
  const all = names.length > 0 ? names : await keptNames(place, io);
  const results: { name: string; problem: string | null; where: string | null }[] = [];
  for (const name of all) {
    const problem = await refusedOr(async () => {
      await using source = await openNamed(name, place, io);
      return await opened(options, io, (secret) => checkAll(source, io, secret));
    });
    const bad = problem instanceof PalisadeError;
    results.push({ name, problem: bad ? problem.message : null, where: bad ? problem.where : null });
    if (!options.json) io.out(bad ? `${problem.message}\n` : `${name}: whole\n`);
  }
  if (options.json) io.out(`${JSON.stringify(results, null, 2)}\n`);
  return results.some(({ problem }) => problem !== null) ? EXIT.input : EXIT.ok;
}

async function keptNames(options: Values<typeof PLACE>, io: Io): Promise<string[]> {
  const { store } = await wantCache(options, io);
  await using _ = store;
  return (await store.list()).map(({ name }) => name);
}

async function checkAll(source: ByteSource, { runtime }: Io, secret?: Secret): Promise<void> {
  const { file } = await readHeader(source, { runtime, secret });
  for (const section of file.sections) await file.read(section);
}

/** Removes snapshots by name; of a file of one's own the system's means do. */
async function remove(options: Values<typeof ONLY_PLACE>, io: Io, names: readonly string[]): Promise<number> {
  const { store } = await wantCache({ ...options, snapshotsCap: undefined }, io);
  await using _ = store;
  const meant = [];
  for (const name of names) meant.push(await namedIn(store, name.replace(new RegExp(`\\${EXTENSION}$`), "")));
  for (const { name, size } of meant) {
    await store.delete(name);
    io.out(`removed ${name}, ${formatBytes(size)}\n`);
  }
  return EXIT.ok;
}

async function prune(options: Values<typeof PRUNE>, io: Io): Promise<number> {
  const cache = await wantCache({ ...options, snapshotsCap: undefined }, io);
  await using _ = cache.store;
  const removed = await cache.prune(options.to);
  for (const { name, size } of removed) io.out(`removed ${name}, ${formatBytes(size)}\n`);
  if (removed.length === 0) io.out("nothing to remove\n");
  return EXIT.ok;
}

/** Writes a new key that only its owner can read. Never over another file: it might be a key, and gone. */
async function makeKey(_: object, io: Io, [path]: readonly string[]): Promise<number> {
  if (await io.runtime.host!.info(path)) {
    throw inputError("secret.exists", `There is a file ${path} already: a key is never replaced`, path);
  }
  await writeWhole(io.runtime, path, new TextEncoder().encode(newKeyFile()), { secret: true });
  io.out(`${path}\n`);
  return EXIT.ok;
}
