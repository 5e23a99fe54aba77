/** Real SIGKILLs while snapshots are written: for the suite a few, for `deno task bench reliability` five hundred. */
import { spawn } from "node:child_process";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { Model } from "../../model/model.ts";
import { folderStore } from "../../model/snapshot/folder_store.ts";
import { storeSource } from "../../model/snapshot/store.ts";
import type { Runtime } from "../../runtime/interface.ts";

const WRITER = fileURLToPath(new URL("snapshot_writer.ts", import.meta.url));

export interface KillOptions {
  readonly folder: string;
  readonly kills: number;
  readonly runtime: Runtime;
  readonly model: Model;
  /** Bytes of two snapshots, which take turns. */
  readonly snapshots: readonly Uint8Array[];
}

export interface KillFigures {
  readonly kills: number;
  /** Kills after which one of the two was there, byte by byte, and could be restored. */
  readonly whole: number;
  /** Files that a kill left half written, over all kills. */
  readonly halves: number;
  /** Files other than the snapshot that are left after one more save. */
  readonly stale: number;
}

/** Starts a writer, kills it while it saves, looks at what is there; again and again. The first of the two is there. */
export async function killedSaves({ folder, kills, runtime, model, snapshots }: KillOptions): Promise<KillFigures> {
  await mkdir(folder, { recursive: true });
  const place = join(folder, "store"), store = folderStore(runtime, place);
  const files = snapshots.map((_, i) => join(folder, `${i}`));
  for (const [i, bytes] of snapshots.entries()) await writeFile(files[i], bytes);
  await store.put("book", snapshots[0]);
  let whole = 0, halves = 0;
  for (let kill = 0; kill < kills; kill++) {
    await killedWriter([place, ...files], kill * 37 % 101 / 3);
    halves += (await readdir(place)).filter((name) => name.endsWith(".part")).length;
    const there = await readFile(join(place, "book.palisade"));
    if (!snapshots.some((bytes) => there.equals(bytes))) continue;
    using _ = await model.restore(await storeSource(store, "book"));
    whole++;
  }
  await store.put("book", snapshots[0]);
  const stale = (await readdir(place)).filter((name) => name !== "book.palisade").length;
  return { kills, whole, halves, stale };
}

/** Kills a writer some milliseconds after it began; ends when it is gone. */
async function killedWriter(parameters: readonly string[], ms: number): Promise<void> {
  const child = spawn(process.execPath, ["run", "-A", "--no-check", WRITER, ...parameters], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const gone = new Promise<void>((done) => child.once("exit", () => done()));
  await new Promise<void>((ready, failed) => {
    child.stdout.once("data", () => ready());
    child.once("exit", (code) => failed(new Error(`the writer ended with ${code}`)));
  });
  await new Promise((done) => setTimeout(done, ms));
  child.kill("SIGKILL");
  await gone;
}
