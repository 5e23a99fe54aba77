/**
 * Files of the package that are data, at the same place below the sources and below `dist/`. A single binary carries them
 * where only it can read, and says so when it starts ({@link embedPackageData}).
 */
import type { Runtime } from "./interface.ts";

export interface PackageFile {
  readonly name: string;
  read(): Promise<Uint8Array>;
}

/** Where the data of each kind lie, beside what reads them, relative to the root of the sources. */
export const DATA_FOLDERS = {
  demo: "cli/commands/demo_texts",
  gates: "model/gate/shipped",
  schema: "cli/schema",
} as const;

/** How to read the files that the binary carries, by `folder/name`. */
const embedded = new Map<string, () => Promise<Uint8Array>>();

/** For a binary's first module: how to read its files, `{ "demo/moby-dick-2.txt": () => …, … }`. */
export function embedPackageData(files: Readonly<Record<string, () => Promise<Uint8Array>>>): void {
  for (const [name, read] of Object.entries(files)) embedded.set(name, read);
}

/** The files of one kind, sorted by name; none in a build that carries no data, and in browsers. */
export async function packageData(runtime: Runtime, folder: keyof typeof DATA_FOLDERS): Promise<PackageFile[]> {
  const { host } = runtime;
  if (!host) return [];
  const carried = [...embedded].filter(([name]) => name.startsWith(`${folder}/`));
  if (carried.length > 0) return sorted(carried.map(([name, read]) => ({ name: name.slice(folder.length + 1), read })));
  const place = host.pathOf(new URL(`../${DATA_FOLDERS[folder]}`, import.meta.url));
  const names = await host.list(place);
  return sorted(names.map((name) => ({ name, read: () => readWhole(runtime, host.join(place, name)) })));
}

async function readWhole(runtime: Runtime, path: string): Promise<Uint8Array> {
  const source = await runtime.openFile(path);
  try {
    return await source.read(0, source.size);
  } finally {
    await source.close();
  }
}

function sorted(files: PackageFile[]): PackageFile[] {
  return files.sort((a, b) => (a.name < b.name ? -1 : 1));
}
