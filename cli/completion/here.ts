/**
 * What completion asks the machine for, a word a line, a tab and what it means behind it: `models` that were fetched,
 * `snapshots` that are kept, and what may stand in the brackets of a `policies` text that somebody is typing. Says nothing
 * where something goes wrong: whoever pressed Tab is typing something else.
 */
import { hostOf } from "../../runtime/host.ts";
import type { Io } from "../io.ts";
import type { Here, Word } from "../options.ts";
import { shown } from "../print/terminal.ts";

/** More than anybody reads. */
const MOST = 200;
/** Letters of a snapshot's name that lists show, and that name it where no other begins so. */
const SHORT = 12;

const ASKED: { readonly [asked in Here]: (typed: string, io: Io) => Promise<Word[]> } = {
  models: (_, io) => fetchedModels(io),
  snapshots: (_, io) => keptSnapshots(io),
  policies: async (typed) => (await import("./brackets.ts")).inBrackets(typed),
};

/** Prints what `asked` names, of a text that begins with `typed`. */
export async function printHere([asked = "", typed = ""]: readonly string[], io: Io): Promise<void> {
  if (!Object.hasOwn(ASKED, asked)) return;
  const words = await ASKED[asked as Here](typed, io).catch(() => []);
  for (const each of words.slice(0, MOST)) io.out(`${[each].flat().map(oneLine).join("\t")}\n`);
}

/** Lines and tabs end words, and a terminal may be what reads them in the end. */
function oneLine(text: string): string {
  return shown(text.replace(/\s+/g, " "));
}

/** Models whose files are there, by the names that fetched them. */
async function fetchedModels({ runtime }: Io): Promise<Word[]> {
  const { modelFolder } = await import("../../model/store/store.ts");
  const { listFetched } = await import("../../model/store/fetched.ts");
  const { MODELS } = await import("../../model/store/registry.ts");
  const host = hostOf(runtime, "complete models"), folder = modelFolder(runtime);
  const there = new Set(await host.list(folder));
  const named = MODELS.map(({ name, file, summary }) => ({ name, files: [{ file }], about: summary }));
  const fetched = (await listFetched(runtime, host, folder)).map((each) => ({ ...each, about: "fetched" }));
  return [...named, ...fetched].filter(({ files }) => files.every(({ file }) => there.has(file)))
    .map(({ name, about }): Word => [name, about]);
}

/** Snapshots of the folder that settings name, the newest first. Those of servers are asked for by nobody who types. */
async function keptSnapshots(io: Io): Promise<Word[]> {
  const { snapshotsCommand } = await import("../commands/snapshots.ts");
  const { settle } = await import("../settings/settle.ts"), { withCommon } = await import("../parse.ts");
  const { placeOf } = await import("../snapshots.ts"),
    { isStoreUrl } = await import("../../model/snapshot/stores/open.ts");
  const list = snapshotsCommand.members!.find(({ name }) => name === "list")!;
  const settled = await settle(withCommon({ ...list, name: "snapshots list" }), {}, io, () => Promise.resolve([]));
  const place = placeOf({ snapshots: settled.get("snapshots")?.value as string | undefined }, io);
  if (place === undefined || isStoreUrl(place) || !await hostOf(io.runtime, "complete snapshots").info(place)) {
    return [];
  }
  return await snapshotsIn(place, io);
}

async function snapshotsIn(place: string, io: Io): Promise<Word[]> {
  const { folderStore } = await import("../../model/snapshot/folder_store.ts");
  const { readHeader } = await import("../../model/snapshot/restore.ts");
  const { storeSource } = await import("../../model/snapshot/store.ts");
  await using store = folderStore(io.runtime, place);
  const all = (await store.list()).sort((a, b) => b.used - a.used).slice(0, MOST);
  return await Promise.all(all.map(async ({ name }): Promise<Word> => {
    const short = name.slice(0, SHORT),
      alone = all.every((other) => other.name === name || !other.name.startsWith(short));
    const about = await storeSource(store, name).then((source) => readHeader(source, io)).then(
      ({ state: { label, modelName } }) => `${label}, ${modelName}`,
      () => "",
    );
    return [alone ? short : name, about];
  }));
}
