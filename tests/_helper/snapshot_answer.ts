/** Restores a snapshot in a process of its own, in whatever runtime, and says what is in it and what it answers. */
import process from "node:process";
import { currentRuntime } from "../../runtime/mod.ts";
import type { BackendChoice } from "../../model/device.ts";
import { ASK, contentHash, QUESTION, snapshotModel } from "./snapshots.ts";

const [path, backend] = process.argv.slice(2);
const runtime = await currentRuntime();
const model = await snapshotModel("llama-plain", { backend: backend as BackendChoice });
using context = await model.restore(await runtime.openFile(path));
const { ids } = await context.ask(QUESTION, ASK);
console.log(JSON.stringify({ content: await contentHash(context), ids, reused: context.reused }));
process.exit(0);
