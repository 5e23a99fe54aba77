/** A thread for tests: echoes messages, throws on "throw". */
import type { ThreadPort } from "../../runtime/interface.ts";

export default function echo(data: { greeting: string }, port: ThreadPort): void {
  port.post(data.greeting);
  port.listen((message) => {
    if (message === "throw") setTimeout(() => Promise.reject(new Error("as asked")), 0);
    else port.post({ echo: message });
  });
}
