/** The texts the demo reads: files of the package. */
import { inputError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { packageData } from "../../runtime/package_data.ts";

const FILES = [
  { title: "Moby-Dick, chapter 7 (The Chapel)", file: "moby-dick-7.txt" },
  { title: "Moby-Dick, chapter 2 (The Carpet-Bag)", file: "moby-dick-2.txt" },
];

/** Reads the texts. PalisadeError `demo.texts` when this build carries none. */
export async function demoTexts(runtime: Runtime): Promise<{ title: string; text: string }[]> {
  const files = await packageData(runtime, "demo");
  return await Promise.all(FILES.map(async ({ title, file }) => {
    const found = files.find(({ name }) => name === file);
    if (found) return { title, text: new TextDecoder().decode(await found.read()) };
    throw inputError(
      "demo.texts",
      `The demo's text ${file} isn't in this build: run the demo from the package or its sources`,
    );
  }));
}
