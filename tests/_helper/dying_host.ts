/**
 * A disk under a process that dies: after some operation nothing more is done, and of what was not synced the disk has
 * whatever a disk may have. It looks after one file; others lie on the real disk.
 */
import { readFile, rm, writeFile } from "node:fs/promises";
import type { ByteSink, Host, Runtime } from "../../runtime/interface.ts";

/** What becomes of what was not synced. */
export const LOSSES = ["kept", "dropped", "torn", "zeros first", "zeros last", "zeros"] as const;
export type Loss = typeof LOSSES[number];

/** What disks write at once. */
const BLOCK = 512;

export class DyingHost {
  /** The process with this host. */
  readonly runtime: Runtime;
  /** Resolves when it is dead. */
  readonly death: Promise<void>;
  /** Operations that were done. */
  readonly steps: string[] = [];
  /** Pieces whose writing was begun, and that were synced, at the end of the file. */
  begun = 0;
  synced = 0;
  readonly #path: string;
  readonly #last: number;
  #die = () => {};
  /** What the disk has for certain; undefined while the file's name may be lost. */
  #durable: Uint8Array | undefined;
  /** What was there before a renaming that may be lost. */
  #before: Uint8Array | undefined;
  #renamed = false;
  #named: boolean;
  #content: Uint8Array;
  #pending: Uint8Array = new Uint8Array(0);

  private constructor(real: Runtime, path: string, last: number, there: Uint8Array | undefined) {
    this.#path = path;
    this.#last = last;
    this.#named = there !== undefined;
    this.#content = there ?? new Uint8Array(0);
    this.#durable = there;
    this.death = new Promise((done) => this.#die = done);
    this.runtime = Object.assign(Object.create(real) as Runtime, { host: this.#hostOver(real.host!) });
  }

  /** Dies when `last` operations are done. */
  static async of(real: Runtime, path: string, last: number): Promise<DyingHost> {
    const there = await readFile(path).then((bytes) => new Uint8Array(bytes), () => undefined);
    return new DyingHost(real, path, last, there);
  }

  /** Once it is dead: leaves on the disk what is there after the loss. */
  async lose(loss: Loss): Promise<void> {
    if (loss === "kept") return;
    if (!this.#named) return await rm(this.#path, { force: true });
    const certain = this.#renamed ? this.#before! : this.#durable ?? this.#content;
    await writeFile(
      this.#path,
      joined(certain, this.#renamed ? new Uint8Array(0) : left(this.#pending, certain, loss)),
    );
  }

  async #step<T>(name: string, work: () => Promise<T>): Promise<T> {
    if (this.steps.length >= this.#last) {
      this.#die();
      return await new Promise<never>(() => {});
    }
    this.steps.push(name);
    return await work();
  }

  #hostOver(real: Host): Host {
    const own: Partial<Host> = {
      // Whoever comes next finds that this one has ended.
      processTag: `${real.processTag.split("-")[0]}-999999999`,
      lock: () => Promise.resolve({ [Symbol.asyncDispose]: () => Promise.resolve() }),
      create: (path, options) =>
        this.#step("create", async () => {
          const sink = await real.create(path, options);
          return path === this.#path ? this.#ending(sink) : this.#beside(sink);
        }),
      rename: (from, to) =>
        this.#step("rename", async () => {
          const done = await real.rename(from, to);
          if (to === this.#path) await this.#replaced();
          return done;
        }),
      remove: (path) => this.#step("remove", () => real.remove(path)),
      syncFolder: (path) =>
        this.#step("syncFolder", async () => {
          await real.syncFolder(path);
          this.#named = true;
          this.#renamed = false;
        }),
    };
    return Object.assign(Object.create(real) as Host, own);
  }

  async #replaced(): Promise<void> {
    this.#before = this.#durable;
    this.#renamed = true;
    this.#durable = this.#content = new Uint8Array(await readFile(this.#path));
  }

  #ending(sink: ByteSink): ByteSink {
    return {
      write: (bytes) => {
        this.begun++;
        return this.#step("write", async () => {
          await sink.write(bytes);
          this.#pending = joined(this.#pending, bytes);
        });
      },
      sync: () =>
        this.#step("sync", async () => {
          await sink.sync();
          this.#durable = this.#content = joined(this.#content, this.#pending);
          this.#pending = new Uint8Array(0);
          this.synced++;
        }),
      close: () => sink.close(),
    };
  }

  #beside(sink: ByteSink): ByteSink {
    return {
      write: (bytes) => this.#step("write beside", () => sink.write(bytes)),
      sync: () => this.#step("sync beside", () => sink.sync()),
      close: () => sink.close(),
    };
  }
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** What is left of bytes that were written behind others and not synced. */
function left(pending: Uint8Array, behind: Uint8Array, loss: Loss): Uint8Array {
  if (loss === "dropped" || pending.length === 0) return new Uint8Array(0);
  if (loss === "torn") return pending.subarray(0, Math.ceil(pending.length / 3));
  const bytes = pending.slice(), first = BLOCK - behind.length % BLOCK;
  if (loss === "zeros") return bytes.fill(0);
  return loss === "zeros first" ? bytes.fill(0, 0, first) : bytes.fill(0, first);
}
