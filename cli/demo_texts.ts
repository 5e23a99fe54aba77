/** The texts the demo reads: files of the package, found beside the sources and beside `dist/`. */
import { inputError } from "../core/errors.ts";
import { fileURLToPath } from "node:url";
import type { Runtime } from "../runtime/interface.ts";

const FILES = [
  { title: "Moby-Dick, chapter 7 (The Chapel)", file: "moby-dick-7.txt" },
  { title: "Moby-Dick, chapter 2 (The Carpet-Bag)", file: "moby-dick-2.txt" },
];

/** Reads the texts. PalisadeError `demo.texts` when this build carries none (a single-file binary). */
export async function demoTexts(runtime: Runtime): Promise<{ title: string; text: string }[]> {
  return await Promise.all(FILES.map(async ({ title, file }) => ({ title, text: await readFirst(runtime, file) })));
}

async function readFirst(runtime: Runtime, file: string): Promise<string> {
  for (const up of ["../data/demo/", "../../data/demo/"]) {
    const path = fileURLToPath(new URL(up + file, import.meta.url));
    if (await runtime.host?.info(path)) return await runtime.readText(path);
  }
  throw inputError(
    "demo.texts",
    `The demo's text ${file} isn't in this build: run the demo from the package or its sources`,
  );
}
