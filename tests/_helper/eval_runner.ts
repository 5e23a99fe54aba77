/**
 * `palisade eval` as a process of its own, which says on standard output when a line of the results is about to be written
 * (`w`) and when it is on the disk (`s`): for tests that kill it. Parameters: those of the command line.
 */
import { writeSync } from "node:fs";
import process from "node:process";
import { stylesOf } from "../../cli/print/colour.ts";
import { run } from "../../cli/program.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import type { Host, Runtime } from "../../runtime/interface.ts";

const real = await currentRuntime(), host = real.host!;
const say = (letter: string) => writeSync(1, letter);
const create: Host["create"] = async (path, options) => {
  const sink = await host.create(path, options);
  if (!options?.append || !path.endsWith(".jsonl")) return sink;
  return {
    write: async (bytes) => {
      say("w");
      await sink.write(bytes);
    },
    sync: async () => {
      await sink.sync();
      say("s");
    },
    close: () => sink.close(),
  };
};
const runtime = Object.assign(Object.create(real) as Runtime, { host: { ...host, create } });
const tell = (text: string) => void process.stderr.write(text);
const styles = { out: stylesOf("none"), err: stylesOf("none") };
process.exit(
  await run(process.argv.slice(2), {
    ...{ runtime, out: tell, paint: tell, err: tell, paintErr: tell, styles, folder: process.cwd(), variables: [] },
    ...{ interactive: false, signal: new AbortController().signal },
  }),
);
