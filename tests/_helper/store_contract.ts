/**
 * What every snapshot store must do: one list of checks for all of them. It runs in pages too, so it imports nothing but
 * the library and has its own few words for a claim.
 */
import { type SnapshotStore, storeSink, storeSource } from "../../model/snapshot/store.ts";

export interface StoreCheck {
  /** Said after the store's name. */
  readonly what: string;
  check(store: SnapshotStore): Promise<void>;
}

const bytes = (...parts: number[]) => Uint8Array.from(parts);

function shown(value: unknown): string {
  if (value instanceof Uint8Array) return value.length > 20 ? `${value.length} bytes` : `bytes ${value.join(" ")}`;
  return JSON.stringify(value) ?? String(value);
}

function ok(claim: boolean, else_: string): asserts claim {
  if (!claim) throw new Error(else_);
}

function same(actual: unknown, wanted: unknown, about = ""): void {
  const bothBytes = actual instanceof Uint8Array && wanted instanceof Uint8Array;
  const equal = bothBytes ? equalBytes(actual, wanted) : shown(actual) === shown(wanted);
  ok(equal, `${about} ${shown(actual)}, want ${shown(wanted)}`);
}

function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  let at = 0;
  while (at < a.length && a[at] === b[at]) at++;
  return a.length === b.length && at === a.length;
}

/** `wanted`: a code of PalisadeErrors, a name of errors, or a part of a message. */
async function refused(work: Promise<unknown> | (() => unknown), wanted: string, about = ""): Promise<void> {
  try {
    await (typeof work === "function" ? work() : work);
  } catch (error) {
    const { code, name, message } = error as Error & { code?: string };
    return ok(
      code === wanted || name === wanted || message.includes(wanted),
      `${about} refused as ${code} ${name} ${message}`,
    );
  }
  throw new Error(`${about} not refused: want ${wanted}`);
}

function noise(length: number): Uint8Array<ArrayBuffer> {
  const made = new Uint8Array(length);
  for (let i = 0, state = length + 1; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    made[i] = state >>> 24;
  }
  return made;
}

async function* streamed(...parts: Uint8Array[]): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    await Promise.resolve();
    yield part;
  }
}

export const STORE_CONTRACT: readonly StoreCheck[] = [
  {
    what: "gives what was put, and any range of it",
    async check(store) {
      const content = noise(5000);
      await store.put("suite-a", content);
      same(await store.get("suite-a"), content);
      for (
        const [offset, length] of [[0, 5000], [0, 1], [4990, 10], [4999, 1], [17, 300], [0, 0], [5000, 0], [10, 0]]
      ) {
        same(
          await store.get("suite-a", { offset, length }),
          content.slice(offset, offset + length),
          `${offset} ${length}`,
        );
      }
      for (
        const [offset, length] of [[4990, 11], [5000, 1], [6000, 10], [-1, 1], [0, -1], [5001, 0], [0.5, 1], [NaN, 1]]
      ) {
        await refused(store.get("suite-a", { offset, length }), "RangeError", `${offset} ${length}`);
      }
      const source = await storeSource(store, "suite-a");
      same(source.size, 5000);
      same(await source.read(17, 3), content.slice(17, 20));
      await source.close();
    },
  },
  {
    what: "holds snapshots of no bytes",
    async check(store) {
      await store.put("suite-a", bytes());
      await store.put("suite-b", streamed());
      await store.put("suite-c", streamed(bytes(), bytes()));
      for (const name of ["suite-a", "suite-b", "suite-c"]) {
        same(await store.get(name), bytes());
        same((await store.head(name))?.size, 0);
        same(await store.get(name, { offset: 0, length: 0 }), bytes());
        await refused(store.get(name, { offset: 0, length: 1 }), "RangeError");
      }
      await store.put("suite-a", bytes(1));
      same(await store.get("suite-a"), bytes(1));
    },
  },
  {
    what: "puts a stream, and replaces what was there",
    async check(store) {
      await store.put("suite-a", bytes(1, 2, 3));
      const sink = storeSink(store, "suite-a"), shared = new Uint8Array(2);
      for (const value of [4, 5, 6]) await sink.write(shared.fill(value));
      same(await store.get("suite-a"), bytes(1, 2, 3), "before the commit");
      await sink.commit();
      same(await store.get("suite-a"), bytes(4, 4, 5, 5, 6, 6));
      await store.put("suite-a", bytes(7));
      same(await store.get("suite-a"), bytes(7));
      same((await store.head("suite-a"))?.size, 1);
    },
  },
  {
    what: "takes more than fits into one part",
    async check(store) {
      // A bit more than a whole number of parts of S3 at their least, in portions that fit nowhere.
      const content = noise(10_500_000), portions: Uint8Array[] = [];
      for (let at = 0; at < content.length; at += 1_234_567) portions.push(content.subarray(at, at + 1_234_567));
      await store.put("suite-a", streamed(...portions));
      same((await store.head("suite-a"))?.size, content.length);
      same(await store.get("suite-a"), content);
      const offset = 5 * 2 ** 20 - 3;
      same(await store.get("suite-a", { offset, length: 6 }), content.slice(offset, offset + 6));
      await store.put("suite-a", content.subarray(0, 5 * 2 ** 20));
      same(await store.get("suite-a", { offset, length: 3 }), content.slice(offset, offset + 3));
      await refused(store.get("suite-a", { offset, length: 4 }), "RangeError");
    },
  },
  {
    what: "changes nothing when the stream fails or is given up",
    async check(store) {
      await store.put("suite-a", bytes(1, 2, 3));
      for (const before of [0, 9, 6_000_000]) {
        const failing = (async function* () {
          yield new Uint8Array(before);
          await Promise.resolve();
          throw new Error("the giver failed");
        })();
        await refused(store.put("suite-a", failing), "the giver failed", `after ${before} bytes`);
        same(await store.get("suite-a"), bytes(1, 2, 3));
      }
      const sink = storeSink(store, "suite-b");
      await sink.write(bytes(9));
      await sink.abort();
      same(await store.head("suite-b"), undefined);
      same((await store.list("suite-")).length, 1);
    },
  },
  {
    what: "lists by prefix, tells sizes and times, deletes",
    async check(store) {
      const before = Date.now() - 60_000;
      for (const [i, each] of ["suite-b1", "suite-a", "suite-b0"].entries()) await store.put(each, new Uint8Array(i));
      const listed = await store.list("suite-b");
      same(listed.map(({ name, size }) => [name, size]), [["suite-b0", 2], ["suite-b1", 0]]);
      same((await store.list("suite-")).map(({ name }) => name), ["suite-a", "suite-b0", "suite-b1"]);
      same(await store.list("suite-none"), []);
      ok((await store.list()).length >= 3, "all by default");
      const head = (await store.head("suite-a"))!;
      same([head.name, head.size], ["suite-a", 1]);
      ok(head.used > before && head.used < Date.now() + 60_000, `used ${head.used}`);
      await store.touch?.("suite-a");
      ok((await store.head("suite-a"))!.used >= head.used, "used when touched");
      same(await store.get("suite-a"), new Uint8Array(1), "after a touch");
      same(await store.delete("suite-a"), true);
      same(await store.delete("suite-a"), false);
      same(await store.head("suite-a"), undefined);
      await store.touch?.("suite-a");
      same(await store.head("suite-a"), undefined, "a touch makes nothing");
      await refused(store.get("suite-a"), "snapshot.missing");
      await refused(store.get("suite-a", { offset: 0, length: 1 }), "snapshot.missing");
      await refused(store.get("suite-a", { offset: 0, length: 0 }), "snapshot.missing");
      await refused(storeSource(store, "suite-a"), "snapshot.missing");
    },
  },
  {
    what: "keeps apart names that look alike, and takes the longest",
    async check(store) {
      const names = ["suite-A", "suite-a", "suite-a.b", "suite-a.palisade", "suite-_", `suite-${"x".repeat(58)}`];
      for (const [i, name] of names.entries()) await store.put(name, bytes(i));
      for (const [i, name] of names.entries()) same(await store.get(name), bytes(i), name);
      same((await store.list("suite-")).map(({ name }) => name), [...names].sort());
      same((await store.list("suite-a")).map(({ name }) => name), ["suite-a", "suite-a.b", "suite-a.palisade"]);
      await store.delete("suite-a");
      same(await store.get("suite-a.b"), bytes(2));
    },
  },
  {
    what: "shows readers one whole version, whoever puts meanwhile",
    async check(store) {
      const version = (i: number) => new Uint8Array(3000 + 1000 * i).fill(i);
      await store.put("suite-a", version(0));
      const wholeOnes = async () => {
        for (let i = 0; i < 12; i++) {
          const found = await store.get("suite-a");
          ok(
            found.every((byte) => byte === found[0]) && found.length === 3000 + 1000 * found[0],
            `mixed: ${found.length}`,
          );
        }
      };
      const puts = async () => {
        for (let round = 0; round < 3; round++) {
          await Promise.all(
            [1, 2, 3].map((i) => store.put("suite-a", streamed(version(i).subarray(0, 100), version(i).subarray(100)))),
          );
        }
      };
      await Promise.all([wholeOnes(), wholeOnes(), puts()]);
      await wholeOnes();
      const { size } = (await store.head("suite-a"))!;
      ok([4000, 5000, 6000].includes(size), `size ${size}`);
      same((await store.list("suite-")).length, 1);
    },
  },
  {
    what: "takes puts of many names at once",
    async check(store) {
      const names = Array.from({ length: 20 }, (_, i) => `suite-${i}`);
      await Promise.all(names.map((name, i) => store.put(name, new Uint8Array(100).fill(i))));
      const found = await Promise.all(names.map((name) => store.get(name, { offset: 99, length: 1 })));
      found.forEach((byte, i) => same(byte, bytes(i)));
      same((await store.list("suite-1")).length, 11);
      same((await Promise.all(names.map((name) => store.delete(name)))).every((gone) => gone), true);
      same(await store.list("suite-"), []);
    },
  },
  {
    what: "ends every call by its signal, and an aborted put leaves what was there",
    async check(store) {
      await store.put("suite-a", bytes(1, 2, 3));
      const late = AbortSignal.abort(new Error("too late")), options = { signal: late };
      const calls: Record<string, () => Promise<unknown>> = {
        get: () => store.get("suite-a", undefined, options),
        range: () => store.get("suite-a", { offset: 1, length: 1 }, options),
        put: () => store.put("suite-a", bytes(9), options),
        stream: () => store.put("suite-a", streamed(bytes(9)), options),
        head: () => store.head("suite-a", options),
        list: () => store.list("suite-", options),
        delete: () => store.delete("suite-a", options),
        source: () => storeSource(store, "suite-a", options),
        ...store.touch && { touch: () => store.touch!("suite-a", options) },
      };
      for (const [call, work] of Object.entries(calls)) await refused(work(), "too late", call);
      // Between two pieces, before and behind the first part of S3; behind the last; and of an array.
      for (const before of [9, 6_000_000]) {
        const stop = new AbortController();
        const content = (async function* () {
          yield new Uint8Array(before);
          await Promise.resolve();
          stop.abort(new Error("enough"));
          yield bytes(9);
        })();
        await refused(store.put("suite-a", content, stop), "enough", `after ${before} bytes`);
        same(await store.get("suite-a"), bytes(1, 2, 3));
      }
      const stop = new AbortController(), sink = storeSink(store, "suite-b", stop);
      await sink.write(bytes(9));
      stop.abort(new Error("given up"));
      await refused(sink.commit(), "given up", "a sink");
      same((await store.list("suite-")).map(({ name }) => name), ["suite-a"]);
      // Under way: whichever comes first.
      const racing = new AbortController(), reading = store.get("suite-a", undefined, racing);
      racing.abort(new Error("while reading"));
      await refused(reading, "while reading", "a get under way");
      same(await store.get("suite-a", undefined, new AbortController()), bytes(1, 2, 3), "unaborted");
    },
  },
  {
    what: "refuses names that are no names",
    async check(store) {
      const long = "x".repeat(65);
      for (
        const bad of [
          "",
          ".",
          "..",
          ".hidden",
          "a/b",
          "a\\b",
          "../a",
          "a\0b",
          "a b",
          "ä",
          long,
          "*",
          "a~b",
          "a\n",
          "a:b",
        ]
      ) {
        const about = JSON.stringify(bad);
        await refused(store.get(bad), "snapshot.name", about);
        await refused(store.put(bad, bytes(1)), "snapshot.name", about);
        await refused(store.head(bad), "snapshot.name", about);
        await refused(store.delete(bad), "snapshot.name", about);
        if (store.touch) await refused(store.touch(bad), "snapshot.name", about);
        await refused(() => storeSink(store, bad), "snapshot.name", about);
      }
    },
  },
];

/** Removes what checks have left. */
export async function emptied(store: SnapshotStore): Promise<void> {
  for (const { name } of await store.list("suite-")) await store.delete(name);
}
