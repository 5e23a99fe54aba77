/** A thread for tests: changes the first word of `words` each time a message asks for it, `ms` later, and wakes who sleeps there. */
import type { ThreadPort } from "../../runtime/interface.ts";

export default function changing({ words }: { words: SharedArrayBuffer }, port: ThreadPort): void {
  const control = new Int32Array(words);
  port.listen((ms) => {
    // A word of its own, which nobody changes.
    Atomics.wait(control, 1, 0, Number(ms));
    Atomics.add(control, 0, 1);
    Atomics.notify(control, 0);
  });
  port.post("ready");
}
