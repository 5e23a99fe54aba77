/** Names and their values, innermost first. */
import { TemplateError, Undefined, type Value } from "./values.ts";

const CONSTANTS: ReadonlyMap<string, Value> = new Map<string, Value>([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
  ["none", null],
  ["None", null],
]);

export class Scope {
  readonly #parent: Scope | undefined;
  readonly #names = new Map<string, Value>();

  constructor(parent?: Scope, names: Iterable<readonly [string, Value]> = []) {
    this.#parent = parent;
    for (const [name, value] of names) this.#names.set(name, value);
  }

  get(name: string): Value {
    const constant = CONSTANTS.get(name);
    if (constant !== undefined) return constant;
    const value = this.#names.get(name);
    if (value !== undefined) return value;
    if (this.#parent) return this.#parent.get(name);
    return new Undefined(`'${name}' is undefined`);
  }

  set(name: string, value: Value): void {
    if (CONSTANTS.has(name)) throw new TemplateError(`can't assign to '${name}'`);
    this.#names.set(name, value);
  }
}
