/** A passphrase typed on a terminal, of which nothing is shown. */
import process from "node:process";

/**
 * Asks on standard error and reads one line of standard input. Ctrl-C and Ctrl-D give up, as does `signal`.
 * @throws what `signal` gives; the terminal is then as it was.
 */
export function promptSecret(question: string, signal: AbortSignal): Promise<string> {
  const { stdin, stderr } = process;
  signal.throwIfAborted();
  // First no echo, then the question: who answers it at once is not shown either.
  stdin.setRawMode(true);
  stderr.write(question);
  stdin.setEncoding("utf8");
  stdin.resume();
  return new Promise<string>((resolve, reject) => {
    const line = new SecretLine();
    const done = (act: () => void) => {
      stdin.off("data", hear);
      signal.removeEventListener("abort", stop);
      stdin.setRawMode(false);
      stdin.pause();
      stderr.write("\n");
      act();
    };
    const stop = () => done(() => reject(signal.reason));
    const hear = (typed: string) => {
      const end = line.take(typed);
      if (end === "enter") done(() => resolve(line.text));
      // The terminal doesn't send the signal itself while each key comes by itself.
      else if (end === "cancel") process.kill(process.pid, "SIGINT");
    };
    signal.addEventListener("abort", stop);
    stdin.on("data", hear);
  });
}

/** A line as it is typed and corrected. */
export class SecretLine {
  #characters: string[] = [];

  get text(): string {
    return this.#characters.join("");
  }

  /** Takes in keys; how the line ended, if it did. */
  take(typed: string): "enter" | "cancel" | undefined {
    for (const key of typed) {
      if (key === "\r" || key === "\n") return "enter";
      if (key === "\x03" || key === "\x04") return "cancel";
      if (key === "\x7f" || key === "\b") this.#characters.pop();
      else if (key === "\x15") this.#characters = [];
      else if (key >= " ") this.#characters.push(key);
    }
    return undefined;
  }
}
