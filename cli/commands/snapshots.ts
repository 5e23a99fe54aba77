/** `palisade snapshots list|show|verify|rm|prune`: what `read` and `ask` kept. */
import { inputError, PalisadeError } from "../../core/errors.ts";
import type { ByteSource } from "../../model/snapshot/bytes.ts";
import { EXTENSION } from "../../model/snapshot/folder_store.ts";
import { type Identity, IDENTITY_FIELDS } from "../../model/snapshot/identity.ts";
import { type OpenedSnapshot, readHeader } from "../../model/snapshot/restore.ts";
import { newKeyFile, type Secret } from "../../model/snapshot/seal/key.ts";
import type { SavedState } from "../../model/snapshot/state.ts";
import { type SnapshotInfo, storeSource } from "../../model/snapshot/store.ts";
import { writeWhole } from "../../runtime/output.ts";
import { command, type CommandBody } from "../command.ts";
import { EXIT, type Io } from "../io.ts";
import type { ListedSnapshot, RemovedSnapshots, VerifiedSnapshot } from "../json/outputs.ts";
import { JSON_SWITCH, printJson } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { channelsText, mergeText, refitText } from "../print/closing_report.ts";
import { formatBytes, formatCount } from "../print/format.ts";
import { tableText } from "../print/table.ts";
import { opened, SECRET } from "../secrets.ts";
import { namedIn, openNamed, PLACE, sizeOf, wantCache } from "../snapshots.ts";

const { snapshots } = PLACE;
const LIST = { snapshots, ...JSON_SWITCH } satisfies OptionTable;
const ONE = { ...LIST, ...SECRET } satisfies OptionTable;
const PRUNE = {
  snapshots,
  to: { value: "size", help: "bytes that may stay, 500MB or 2GiB; 0 removes all", read: sizeOf, required: true },
  ...JSON_SWITCH,
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
      options: LIST,
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
      options: JSON_SWITCH,
      run: makeKey,
    }),
  ],
};

async function list(options: Values<typeof LIST>, io: Io): Promise<number> {
  const { store } = await wantCache({ ...options, snapshotsCap: undefined }, io);
  await using _ = store;
  const listed: ListedSnapshot[] = [];
  for (const { name, size, used } of await store.list("", io)) {
    const opened = await refusedOr(async () => await readHeader(await storeSource(store, name, io), io));
    listed.push({ name, bytes: size, used, ...described(opened) });
  }
  listed.sort((a, b) => b.used - a.used);
  if (options.json) printJson(io, "snapshots list", listed);
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

function described(opened: OpenedSnapshot | PalisadeError): Omit<ListedSnapshot, "name" | "bytes" | "used"> {
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

function listText(listed: readonly ListedSnapshot[], place: string): string {
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
    printJson(io, "snapshots show", { name: file.name, bytes: file.size, sections: file.sections, identity, state });
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
  const results: VerifiedSnapshot[] = [];
  for (const name of all) {
    const problem = await refusedOr(async () => {
      await using source = await openNamed(name, place, io);
      return await opened(options, io, (secret) => checkAll(source, io, secret));
    });
    const bad = problem instanceof PalisadeError;
    results.push({ name, problem: bad ? problem.message : null, where: bad ? problem.where : null });
    if (!options.json) io.out(bad ? `${problem.message}\n` : `${name}: whole\n`);
  }
  if (options.json) printJson(io, "snapshots verify", results);
  return results.some(({ problem }) => problem !== null) ? EXIT.input : EXIT.ok;
}

async function keptNames(options: Values<typeof PLACE>, io: Io): Promise<string[]> {
  const { store } = await wantCache(options, io);
  await using _ = store;
  return (await store.list("", io)).map(({ name }) => name);
}

async function checkAll(source: ByteSource, { runtime }: Io, secret?: Secret): Promise<void> {
  const { file } = await readHeader(source, { runtime, secret });
  for (const section of file.sections) await file.read(section);
}

/** Removes snapshots by name; of a file of one's own the system's means do. */
async function remove(options: Values<typeof LIST>, io: Io, names: readonly string[]): Promise<number> {
  const { store } = await wantCache({ ...options, snapshotsCap: undefined }, io);
  await using _ = store;
  const meant = [];
  for (const name of names) meant.push(await namedIn(store, name.replace(new RegExp(`\\${EXTENSION}$`), ""), io));
  for (const { name, size } of meant) {
    await store.delete(name);
    if (!options.json) io.out(removedText(name, size));
  }
  if (options.json) printJson(io, "snapshots rm", removedOf(meant));
  return EXIT.ok;
}

async function prune(options: Values<typeof PRUNE>, io: Io): Promise<number> {
  const cache = await wantCache({ ...options, snapshotsCap: undefined }, io);
  await using _ = cache.store;
  const removed = await cache.prune(options.to, undefined, io);
  if (options.json) printJson(io, "snapshots prune", removedOf(removed));
  else io.out(removed.map(({ name, size }) => removedText(name, size)).join("") || "nothing to remove\n");
  return EXIT.ok;
}

function removedText(name: string, size: number): string {
  return `removed ${name}, ${formatBytes(size)}\n`;
}

function removedOf(removed: readonly SnapshotInfo[]): RemovedSnapshots {
  return { removed: removed.map(({ name, size }) => ({ name, bytes: size })) };
}

/** Writes a new key that only its owner can read. Never over another file: it might be a key, and gone. */
async function makeKey({ json }: Values<typeof JSON_SWITCH>, io: Io, [path]: readonly string[]): Promise<number> {
  if (await io.runtime.host!.info(path)) {
    throw inputError("secret.exists", `There is a file ${path} already: a key is never replaced`, path);
  }
  await writeWhole(io.runtime, path, new TextEncoder().encode(newKeyFile()), { secret: true });
  if (json) printJson(io, "snapshots key", { file: path });
  else io.out(`${path}\n`);
  return EXIT.ok;
}
