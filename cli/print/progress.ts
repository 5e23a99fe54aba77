/** A progress bar on standard error, silent where nobody looks. */
import cliProgress from "cli-progress";
import process from "node:process";
import { shown } from "./terminal.ts";

/** Moves one bar at a time: calling it with a new label starts a new bar. */
export interface Progress extends Disposable {
  update(label: string, done: number, total: number, unit?: "bytes" | "steps"): void;
  /** Takes the bar away. */
  clear(): void;
}

const SILENT: Progress = { update() {}, clear() {}, [Symbol.dispose]() {} };

/** A bar on the terminal, or nothing at all when `visible` is false. */
export function createProgress(visible: boolean): Progress {
  if (!visible) return SILENT;
  let bar: cliProgress.SingleBar | undefined, current = "";
  const clear = () => {
    bar?.stop();
    bar = undefined;
    current = "";
  };
  return {
    update(text, done, total, unit = "steps") {
      // The bar writes by itself, and with sequences of its own. Braces would be fields of its.
      const label = shown(text).replace(/[{}\n]/g, "·");
      if (label !== current) {
        clear();
        current = label;
        bar = new cliProgress.SingleBar({
          format: unit === "bytes" ? `${label} [{bar}] {percentage}% of {size}` : `${label} [{bar}] {value}/{total}`,
          stream: process.stderr,
          clearOnComplete: true,
          // Left as it is: a process that is killed could not give it back.
          hideCursor: false,
          barsize: 30,
          gracefulExit: false,
        }, cliProgress.Presets.rect);
        bar.start(total, done, { size: `${(total / 1e6).toFixed(0)} MB` });
      }
      bar?.update(done);
    },
    clear,
    [Symbol.dispose]: clear,
  };
}
