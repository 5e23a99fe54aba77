/** Commands between threads: what one side packs is what the other runs on, by name, through the memory they share. */
import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import {
  type Asked,
  bytes,
  commandsFrom,
  flag,
  floats,
  ints,
  json,
  list,
  number,
  oneOf,
  optionalInts,
  record,
  serve,
  type Served,
  someOf,
} from "../../wasm/threads/command.ts";
import { errorOf, failure, type Message, messageBytes, MessageMemory } from "../../wasm/threads/message.ts";
import { DENSE } from "../../wasm/dense/service.ts";
import { ROWS } from "../../wasm/threads/rows_service.ts";

const memory = new MessageMemory(new SharedArrayBuffer(64, { maxByteLength: 1 << 20 }));

/** As the other side reads it. */
function passed(message: Message): Message {
  memory.reserve(messageBytes(message));
  memory.write(0, message);
  const { message: read } = memory.read(0);
  return { ...read, arrays: read.arrays.map((array) => array?.slice()) };
}

/** Asks and answers as two threads do. */
async function call<Host, I, O>(command: Asked<I, O> & Served<Host>, host: Host, input: I): Promise<O> {
  return command.unpack(passed(await command.run(host, passed(command.pack(input)))));
}

const all = {
  count: number,
  yes: flag,
  no: flag,
  keys: floats,
  kept: list(ints),
  text: bytes,
  word: oneOf(["a", "b", "c"]),
  none: optionalInts,
  some: optionalInts,
  pair: record({ first: number, rest: list(number) }),
  empty: list(floats),
  seen: someOf(["mean", "mass", "entropy"]),
  plan: json<{ readonly layers: readonly string[] }>(),
};

Deno.test("a command runs on what was asked, by name, and gives back what it gave, for every kind of field", async () => {
  const input = {
    count: 2 ** 40 + 0.5,
    yes: true,
    no: false,
    keys: Float32Array.of(1, -2, NaN),
    kept: [Int32Array.of(1, 2, 3), new Int32Array(0)],
    text: Uint8Array.of(1, 2, 3),
    word: "c",
    none: undefined,
    some: Int32Array.of(7),
    pair: { first: -1, rest: [3, 4, 5] },
    empty: [],
    seen: { mean: Float32Array.of(1), entropy: Float32Array.of(2, 3) },
    plan: { layers: ["x", "ü"] },
  } as const;
  const command = commandsFrom<unknown[]>(5);
  const echo = command(all, all, (host, got) => {
    host.push(got);
    return got;
  });
  const reached: unknown[] = [];
  assert.deepEqual(await call(echo, reached, input), input);
  assert.deepEqual(reached, [input]);
});

Deno.test("commands are numbered in the order of their declaration, and those that give nothing give an empty answer", async () => {
  const command = commandsFrom<{ sum: number }>(40);
  const add = command({ by: number }, {}, (host, { by }) => void (host.sum += by));
  const get = command({}, { sum: number }, (host) => Promise.resolve(host));
  assert.deepEqual([add.operation, get.operation], [40, 41]);
  const host = { sum: 1 };
  assert.deepEqual(await call(add, host, { by: 4 }), {});
  assert.deepEqual(await call(get, host, {}), { sum: 5 });
});

Deno.test("serve() carries out the commands of its table alone, and rejects with what they throw", async () => {
  const command = commandsFrom<string>(1);
  const table = {
    greet: command({ name: bytes }, { length: number }, (host, { name }) => ({ length: host.length + name.length })),
    fail: command({}, {}, () => {
      throw new RangeError("no");
    }),
  };
  const served = serve(table, "hello");
  assert.deepEqual((await served(table.greet.pack({ name: Uint8Array.of(1) })))!.numbers, [6]);
  await assert.rejects(async () => await served(table.fail.pack({})), new RangeError("no"));
  assert.equal(served({ operation: 3, numbers: [], arrays: [] }), undefined);
});

Deno.test("no two commands of the threads share a number", () => {
  const numbers = [...Object.values(ROWS), ...Object.values(DENSE)].map(({ operation }) => operation);
  assert.equal(new Set(numbers).size, numbers.length);
  assert.ok(numbers.every((operation) => operation > 0), "0 and −1 are answers");
});

Deno.test("errors come through as they were: typed, of range, or plain", () => {
  const typed = new PalisadeError("resources", "wasm.memory", "full", { where: "wasm" });
  const through = (error: unknown) => errorOf(passed(failure(error)));
  const got = through(typed) as PalisadeError;
  assert.ok(got instanceof PalisadeError);
  assert.deepEqual([got.kind, got.code, got.message, got.where], ["resources", "wasm.memory", "full", "wasm"]);
  assert.deepEqual(through(new RangeError("r")), new RangeError("r"));
  assert.deepEqual(through("plain"), new Error("plain"));
});
