/**
 * Commands to another thread, each declared once: what it takes, what it gives, and what the thread does. From that both
 * sides derive: the asking thread packs the input and unpacks the answer, the other one unpacks, runs, and packs.
 */
import { ANSWER, type Message, type NumberArray, parsed } from "./message.ts";

/** What a message holds beside its operation. */
interface Contents {
  readonly numbers: number[];
  readonly arrays: (NumberArray | undefined)[];
}

/** Reads what was written, in the same order. */
class Cursor {
  readonly #numbers: readonly number[];
  readonly #arrays: readonly (NumberArray | undefined)[];
  #number = 0;
  #array = 0;

  constructor({ numbers, arrays }: Message) {
    this.#numbers = numbers;
    this.#arrays = arrays;
  }

  number(): number {
    return this.#numbers[this.#number++];
  }

  array(): NumberArray | undefined {
    return this.#arrays[this.#array++];
  }
}

/** How values of one type go into a message, and back. */
export interface Field<T> {
  write(value: T, to: Contents): void;
  read(from: Cursor): T;
}

type Fields = Readonly<Record<string, Field<unknown>>>;
type ValueOf<F> = F extends Field<infer T> ? T : never;
/** The values of declared fields, by name. */
export type Values<F extends Fields> = { readonly [K in keyof F]: ValueOf<F[K]> };
/** What a command gives: nothing where no field is declared. */
type Given<F extends Fields> = [keyof F] extends [never] ? void : Values<F>;

export const number: Field<number> = {
  write: (value, { numbers }) => numbers.push(value),
  read: (from) => from.number(),
};

/** NaN stands for none. */
export const optionalNumber: Field<number | undefined> = {
  write: (value = NaN, { numbers }) => numbers.push(value),
  read: (from) => {
    const value = from.number();
    return Number.isNaN(value) ? undefined : value;
  },
};

export const flag: Field<boolean> = {
  write: (value, { numbers }) => numbers.push(value ? 1 : 0),
  read: (from) => from.number() === 1,
};

function array<A extends NumberArray>(): Field<A> {
  return { write: (value, { arrays }) => arrays.push(value), read: (from) => from.array() as A };
}

/** Arrays that are read are views, valid until the memory is written again. */
export const floats: Field<Float32Array> = array();
export const ints: Field<Int32Array> = array();
export const bytes: Field<Uint8Array> = array();
export const optionalFloats: Field<Float32Array | undefined> = {
  write: (value, { arrays }) => arrays.push(value),
  read: (from) => from.array() as Float32Array | undefined,
};
export const optionalInts: Field<Int32Array | undefined> = {
  write: (value, { arrays }) => arrays.push(value),
  read: (from) => from.array() as Int32Array | undefined,
};

/** One of some words. */
export function oneOf<const T extends string>(words: readonly T[]): Field<T> {
  return { write: (value, { numbers }) => numbers.push(words.indexOf(value)), read: (from) => words[from.number()] };
}

export function list<T>(field: Field<T>): Field<readonly T[]> {
  return {
    write(values, to) {
      to.numbers.push(values.length);
      for (const value of values) field.write(value, to);
    },
    read: (from) => Array.from({ length: from.number() }, () => field.read(from)),
  };
}

/** Floats by name, of which some may be missing. */
export function someOf<const T extends string>(names: readonly T[]): Field<Partial<Record<T, Float32Array>>> {
  return {
    write: (values, { arrays }) => names.forEach((name) => arrays.push(values[name])),
    read(from) {
      const values: Partial<Record<T, Float32Array>> = {};
      for (const name of names) {
        const floats = from.array() as Float32Array | undefined;
        if (floats) values[name] = floats;
      }
      return values;
    },
  };
}

/** Whatever JSON can say. */
export function json<T>(): Field<T> {
  return {
    write: (value, { arrays }) => arrays.push(new TextEncoder().encode(JSON.stringify(value))),
    read: (from) => parsed(from.array()!) as T,
  };
}

export function record<F extends Fields>(fields: F): Field<Values<F>> {
  const entries = Object.entries(fields);
  return {
    write(values, to) {
      for (const [name, field] of entries) field.write(values[name], to);
    },
    read: (from) => Object.fromEntries(entries.map(([name, field]) => [name, field.read(from)])) as Values<F>,
  };
}

/** A command as the asking thread sees it. */
export interface Asked<Input, Output> {
  pack(input: Input): Message;
  unpack(answer: Message): Output;
}

/** A command as the thread that carries it out sees it, on what it holds. */
export interface Served<Host> {
  readonly operation: number;
  run(host: Host, command: Message): Promise<Message>;
}

export interface Command<Host, Input, Output> extends Asked<Input, Output>, Served<Host> {}

/** Declares commands on a `Host`, numbered from `first` on in the order of their declaration. */
export function commandsFrom<Host>(first: number) {
  let next = first;
  return <I extends Fields, O extends Fields>(
    input: I,
    output: O,
    run: (host: Host, input: Values<I>) => Given<O> | Promise<Given<O>>,
  ): Command<Host, Values<I>, Values<O>> => {
    const operation = next++, takes = record(input), gives = record(output);
    return {
      operation,
      pack: (values) => packed(operation, takes, values),
      unpack: (answer) => gives.read(new Cursor(answer)),
      async run(host, command) {
        const given = await run(host, takes.read(new Cursor(command)));
        return packed(ANSWER, gives, (given ?? {}) as Values<O>);
      },
    };
  };
}

function packed<T>(operation: number, field: Field<T>, values: T): Message {
  const contents: Contents = { numbers: [], arrays: [] };
  field.write(values, contents);
  return { operation, ...contents };
}

/** Carries out the commands of a table on `host`; `undefined` for any other. Rejects with what a command throws. */
export function serve<Host>(
  table: Readonly<Record<string, Served<Host>>>,
  host: Host,
): (command: Message) => Promise<Message> | undefined {
  const commands = new Map(Object.values(table).map((command) => [command.operation, command]));
  return (command) => commands.get(command.operation)?.run(host, command);
}
