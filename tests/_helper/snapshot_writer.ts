/**
 * Puts two snapshots in the same place in turn, for ever, in small pieces, as `Context.save` does; for tests that kill it.
 * Parameters: the folder of the store, and the files that have the bytes of the two.
 */
import { readFile } from "node:fs/promises";
import process from "node:process";
import { folderStore } from "../../model/snapshot/folder_store.ts";
import { storeSink } from "../../model/snapshot/store.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const [folder, ...files] = process.argv.slice(2);
const store = folderStore(await currentRuntime(), folder);
const contents = await Promise.all(files.map((file) => readFile(file)));
process.stdout.write("ready\n");
for (let i = 0;; i++) {
  const sink = storeSink(store, "book"), content = contents[i % contents.length];
  for (let at = 0; at < content.length; at += 4096) await sink.write(content.subarray(at, at + 4096));
  await sink.commit();
}
