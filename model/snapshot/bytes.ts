/**
 * The bytes of a snapshot on their way. A source gives any range, a sink takes chunks in order and is committed at the
 * end. What encrypts or counts wraps one in another, so it never sees what the bytes mean.
 */
import { concatenate } from "../../core/concatenate.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { writeWhole } from "../../runtime/output.ts";

export type { ByteSource } from "../../runtime/interface.ts";

/** Takes bytes in order. One of {@link commit} and {@link abort} ends it; nothing may be called afterwards. */
export interface ByteSink {
  /** Appends all of `bytes`, which the caller may reuse once the promise is kept. */
  write(bytes: Uint8Array): Promise<void>;
  /** All bytes have come. Kept once they are where they belong, whole and durable as far as the sink can tell. */
  commit(): Promise<void>;
  /** Gives up: nothing of what was written is left, and what was there before still is. Never rejects. */
  abort(): Promise<void>;
}

/** Collects in memory; {@link bytes} after the commit. */
export class MemorySink implements ByteSink {
  readonly #parts: Uint8Array[] = [];

  // deno-lint-ignore require-await -- a failure must reject, not throw
  async write(bytes: Uint8Array): Promise<void> {
    this.#parts.push(bytes.slice());
  }

  commit(): Promise<void> {
    return Promise.resolve();
  }

  abort(): Promise<void> {
    this.#parts.length = 0;
    return Promise.resolve();
  }

  /** Everything that was written, in one array of its own. */
  bytes(): Uint8Array<ArrayBuffer> {
    return concatenate(this.#parts, Uint8Array);
  }
}

/**
 * A sink for a file: written beside it, synced, renamed (`runtime/output.ts`), readable by its owner alone.
 * PalisadeErrors as `writeWhole`.
 */
export function fileSink(runtime: Runtime, path: string): ByteSink {
  return pushed((chunks) => writeWhole(runtime, path, chunks, { secret: true }));
}

/** A sink over what takes a stream of chunks: `consume` is called at once, and ends when the stream does. */
export function pushed(consume: (chunks: AsyncIterable<Uint8Array>) => Promise<void>): ByteSink {
  const handover = new Handover();
  const done = consume(handover.chunks());
  // Told by the next `write`, or by `commit`.
  done.catch(() => {});
  return {
    write: (bytes) => Promise.race([handover.give(bytes), done.then(endedEarly)]),
    async commit() {
      handover.end();
      await done;
    },
    async abort() {
      handover.end(new DOMException("The snapshot was given up", "AbortError"));
      await done.catch(() => {});
    },
  };
}

function endedEarly(): never {
  throw new Error("Nobody takes the snapshot's bytes any more");
}

/** What one side gives, the other takes, one chunk at a time. */
class Handover {
  /** Given and not yet asked past: the giver waits until the next one is wanted. */
  #given?: { readonly bytes: Uint8Array; readonly taken: () => void };
  #ended?: { readonly reason?: unknown };
  #wake: () => void = () => {};

  give(bytes: Uint8Array): Promise<void> {
    return new Promise((taken) => {
      this.#given = { bytes, taken };
      this.#wake();
    });
  }

  /** No more comes; with a reason the taker fails by it. */
  end(reason?: unknown): void {
    this.#ended = { reason };
    this.#wake();
  }

  async *chunks(): AsyncGenerator<Uint8Array> {
    while (true) {
      if (!this.#given && !this.#ended) await new Promise<void>((wake) => this.#wake = wake);
      const given = this.#given;
      if (given) {
        yield given.bytes;
        this.#given = undefined;
        given.taken();
      } else {
        if (this.#ended!.reason !== undefined) throw this.#ended!.reason;
        return;
      }
    }
  }
}
