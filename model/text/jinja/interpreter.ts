/**
 * Runs a template's tree as Jinja2 does. `@huggingface/jinja` has an interpreter too; its values print and compare as
 * JavaScript's do (`none` as nothing, lists as JSON, `1 == "1"`), which is not what models were trained on.
 *
 * A template may be hostile. So the interpreter counts its *work*, the size of every value it makes, and looks at the
 * clock: beyond a limit it throws `Refusal`.
 */
import { attribute, item, operate, signed } from "./operators.ts";
import { cycler, filter, joiner, test, type Tools } from "./filters.ts";
import type { Binary, Call, CallBlock, For, Identifier, Member, Node, SetNode, Slice } from "./nodes.ts";
import { NOT_PREFIX, TEST_PREFIX, TUPLE } from "./parse.ts";
import { Scope } from "./scope.ts";
import {
  Callable,
  defined,
  equal,
  Float,
  itemsOf,
  iterate,
  keyOf,
  Members,
  type Named,
  slice,
  TemplateError,
  text,
  truth,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** The template wants more than it may. */
export class Refusal extends Error {
  readonly reason: "timeout" | "size";
  constructor(reason: "timeout" | "size", message: string) {
    super(message);
    this.reason = reason;
  }
}

/** Characters in all values made. A long chat template makes some 100,000; this many stay below a gigabyte. */
const MAX_WORK = 64 * 1024 * 1024;
/** What a list entry counts: an object of some 50 bytes. */
const ENTRY_WORK = 4;
const MAX_RANGE = 100_000;

type Signal = "break" | "continue" | undefined;
type Out = (text: string) => undefined;

/** The text a tree makes of `variables`. Throws TemplateError, Refusal, and RangeError for endless recursion. */
export function render(program: Node, variables: ReadonlyMap<string, Value>, timeoutMs: number): string {
  return new Interpreter(timeoutMs).text([program], new Scope(new Scope(undefined, globals()), variables));
}

class Interpreter {
  readonly #timeoutMs: number;
  readonly #deadline: number;
  readonly #tools: Tools = {
    member: (value, name) => typeof name === "string" ? item(value, name) : item(value, name),
  };
  #work = 0;
  #steps = 0;

  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
    this.#deadline = performance.now() + timeoutMs;
  }

  /** What statements print. */
  text(body: readonly Node[], scope: Scope): string {
    const parts: string[] = [];
    this.#run(body, scope, (part) => void parts.push(part));
    return parts.join("");
  }

  #run(body: readonly Node[], scope: Scope, out: Out): Signal {
    for (const node of body) {
      const signal = this.#statement(node, scope, out);
      if (signal) return signal;
    }
  }

  #statement(node: Node, scope: Scope, out: Out): Signal {
    switch (node.type) {
      case "Program":
        return this.#run(node.body, scope, out);
      case "Comment":
        return;
      case "Break":
        return "break";
      case "Continue":
        return "continue";
      case "If":
        return this.#run(truth(this.#value(node.test, scope)) ? node.body : node.alternate, scope, out);
      case "For":
        return this.#loop(node, scope, out);
      case "Set":
        return this.#assign(node, scope);
      case "Macro":
        scope.set(node.name.value, this.#macro(node.name.value, node.args, node.body, scope));
        return;
      case "CallStatement":
        return out(this.#count(text(this.#callBlock(node, scope))));
      case "FilterStatement":
        return out(text(this.#filter(node.filter, this.text(node.body, new Scope(scope)), scope)));
      default:
        return out(this.#count(text(this.#value(node, scope))));
    }
  }

  #value(node: Node, scope: Scope): Value {
    // The clock is read every 256 steps; reading it is slower than a step.
    if ((++this.#steps & 0xff) === 0 && performance.now() > this.#deadline) {
      throw new Refusal("timeout", `it took longer than ${this.#timeoutMs} ms`);
    }
    return this.#count(this.#evaluate(node, scope));
  }

  #count<T extends Value>(value: T): T {
    this.#work += workOf(value);
    if (this.#work > MAX_WORK) throw new Refusal("size", "it made more intermediate text and lists than a chat needs");
    return value;
  }

  #evaluate(node: Node, scope: Scope): Value {
    switch (node.type) {
      case "Identifier":
        return scope.get(node.value);
      case "StringLiteral":
      case "IntegerLiteral":
        return node.value;
      case "FloatLiteral":
        return new Float(node.value);
      case "ArrayLiteral":
        return node.value.map((each) => this.#value(each, scope));
      case "TupleLiteral":
        return new Tuple(node.value.map((each) => this.#value(each, scope)));
      case "ObjectLiteral":
        return new Map(
          [...node.value].map(([key, each]) => [keyOf(this.#value(key, scope)), this.#value(each, scope)]),
        );
      case "MemberExpression":
        return this.#member(node, scope);
      case "CallExpression":
        return this.#call(node, scope);
      case "BinaryExpression":
        return this.#binary(node, scope);
      case "UnaryExpression":
        return this.#unary(node.operator.value, this.#value(node.argument, scope));
      case "FilterExpression":
        return this.#filter(node.filter, this.#value(node.operand, scope), scope);
      case "TestExpression":
        return test(node.test.value, this.#value(node.operand, scope), [], new Map()) !== node.negate;
      case "Ternary":
        return this.#value(truth(this.#value(node.condition, scope)) ? node.trueExpr : node.falseExpr, scope);
      case "SelectExpression":
        return truth(this.#value(node.test, scope)) ? this.#value(node.lhs, scope) : new Undefined(
          "the inline if-expression evaluated to false and no else section was defined.",
        );
      default:
        throw new TemplateError(`a ${node.type} is no value`);
    }
  }

  #unary(operator: string, value: Value): Value {
    return operator === "not" ? !truth(value) : signed(operator, value);
  }

  #binary({ operator: { value: operator }, left, right }: Binary, scope: Scope): Value {
    const first = this.#value(left, scope);
    if (operator === "and") return truth(first) ? this.#value(right, scope) : first;
    if (operator === "or") return truth(first) ? first : this.#value(right, scope);
    return operate(operator, first, this.#value(right, scope));
  }

  #member(node: Member, scope: Scope): Value {
    const object = this.#value(node.object, scope);
    if (node.property.type === "SliceExpression") return this.#slice(object, node.property, scope);
    if (node.computed) return item(object, this.#value(node.property, scope));
    if (node.property.type === "Identifier") return attribute(object, node.property.value);
    return item(object, this.#value(node.property, scope));
  }

  #slice(object: Value, { start, stop, step }: Slice, scope: Scope): Value {
    const [from, to, by] = [start, stop, step].map((node) => {
      const at = node === undefined ? null : this.#value(node, scope);
      if (at !== null && typeof at !== "number") throw new TemplateError("slice indices must be integers or None");
      return at;
    });
    const value = defined(object);
    if (typeof value === "string") return slice(Array.from(value), from, to, by ?? 1).join("");
    const items = itemsOf(value);
    if (!items) return new Undefined(`${typeName(value)} object has no element slice`);
    const cut = slice(items, from, to, by ?? 1);
    return Array.isArray(value) ? cut : new Tuple(cut);
  }

  #filter(node: Identifier | Call, value: Value, scope: Scope): Value {
    const name = ((node.type === "Identifier" ? node : node.callee) as Identifier).value;
    const [args, named] = node.type === "Identifier" ? [[], new Map()] : this.#arguments(node.args, scope);
    if (name === TUPLE) return new Tuple(iterate(value));
    if (name.startsWith(TEST_PREFIX)) return test(name.slice(TEST_PREFIX.length), value, args, named);
    if (name.startsWith(NOT_PREFIX)) return !test(name.slice(NOT_PREFIX.length), value, args, named);
    return filter(name, value, args, named, this.#tools);
  }

  #call(node: Call, scope: Scope, more: Named = new Map()): Value {
    const callee = defined(this.#value(node.callee, scope));
    if (!(callee instanceof Callable)) throw new TemplateError(`'${typeName(callee)}' object is not callable`);
    const [args, named] = this.#arguments(node.args, scope);
    return callee.call(args, new Map([...named, ...more]));
  }

  #arguments(nodes: readonly Node[], scope: Scope): [Value[], Map<string, Value>] {
    const args: Value[] = [], named = new Map<string, Value>();
    for (const node of nodes) {
      if (node.type === "KeywordArgumentExpression") named.set(node.key.value, this.#value(node.value, scope));
      else if (node.type === "SpreadExpression") args.push(...iterate(this.#value(node.argument, scope)));
      else if (node.type === "KeywordSpreadExpression") {
        const more = this.#value(node.argument, scope);
        if (!(more instanceof Map)) throw new TemplateError("argument after ** must be a mapping");
        for (const [key, value] of more) named.set(text(key), value);
      } else args.push(this.#value(node, scope));
    }
    return [args, named];
  }

  #assign(node: SetNode, scope: Scope): undefined {
    const value = node.value ? this.#value(node.value, scope) : this.text(node.body, new Scope(scope));
    this.#bind(node.assignee, value, scope);
  }

  #bind(target: Node, value: Value, scope: Scope): void {
    if (target.type === "Identifier") return scope.set(target.value, value);
    if (target.type === "MemberExpression" && target.property.type === "Identifier") {
      const object = this.#value(target.object, scope);
      if (!(object instanceof Members) || object.kind !== NAMESPACE) {
        throw new TemplateError("cannot assign attribute on non-namespace object");
      }
      object.members.set(target.property.value, value);
      return;
    }
    if (target.type !== "TupleLiteral") throw new TemplateError(`can't assign to ${target.type}`);
    const items = iterate(defined(value)), wanted = target.value.length;
    if (items.length < wanted) {
      throw new TemplateError(`not enough values to unpack (expected ${wanted}, got ${items.length})`);
    }
    if (items.length > wanted) throw new TemplateError(`too many values to unpack (expected ${wanted})`);
    target.value.forEach((each, i) => this.#bind(each, items[i], scope));
  }

  #loop(node: For, scope: Scope, out: Out): undefined {
    const { iterable } = node;
    const filtered = iterable.type === "SelectExpression";
    const all = iterate(this.#value(filtered ? iterable.lhs : iterable, scope));
    const items = filtered
      ? all.filter((each) => {
        const inner = new Scope(scope);
        this.#bind(node.loopvar, each, inner);
        return truth(this.#value(iterable.test, inner));
      })
      : all;
    if (items.length === 0) this.#run(node.defaultBlock, new Scope(scope), out);
    let seen: readonly Value[] | undefined;
    const changed = new Callable("changed", (values) => {
      const same = seen !== undefined && seen.length === values.length &&
        values.every((each, i) => equal(each, seen![i]));
      seen = values;
      return !same;
    });
    for (let i = 0; i < items.length; i++) {
      const inner = new Scope(scope);
      inner.set("loop", loopMembers(items, i, changed));
      this.#bind(node.loopvar, items[i], inner);
      if (this.#run(node.body, inner, out) === "break") break;
    }
  }

  #macro(name: string, parameters: readonly Node[], body: readonly Node[], scope: Scope): Callable {
    const names = parameters.map((each) =>
      each.type === "KeywordArgumentExpression" ? each.key.value : (each as Identifier).value
    );
    const more = used(body);
    return new Callable(name, (args, named) => {
      const inner = new Scope(scope), left = new Map(named);
      const caller = left.get("caller");
      if (caller !== undefined && !names.includes("caller")) {
        if (!more.has("caller")) {
          throw new TemplateError(`macro '${name}' was invoked with two values for the special caller argument.`);
        }
        left.delete("caller");
        inner.set("caller", caller);
      }
      if (args.length > names.length && !more.has("varargs")) {
        throw new TemplateError(`macro '${name}' takes not more than ${names.length} argument(s)`);
      }
      parameters.forEach((each, i) => {
        const given = i < args.length ? args[i] : left.get(names[i]);
        left.delete(names[i]);
        inner.set(names[i], given ?? this.#defaultOf(each, names[i], inner));
      });
      if (left.size > 0 && !more.has("kwargs")) {
        throw new TemplateError(`macro '${name}' takes no keyword argument '${[...left.keys()][0]}'`);
      }
      if (more.has("varargs")) inner.set("varargs", new Tuple(args.slice(names.length)));
      if (more.has("kwargs")) inner.set("kwargs", new Map(left));
      return this.#count(this.text(body, inner));
    });
  }

  #defaultOf(parameter: Node, name: string, scope: Scope): Value {
    if (parameter.type === "KeywordArgumentExpression") return this.#value(parameter.value, scope);
    return new Undefined(`parameter '${name}' was not provided`);
  }

  #callBlock({ call, callerArgs, body }: CallBlock, scope: Scope): Value {
    const caller = this.#macro("caller", callerArgs ?? [], body, scope);
    return this.#call(call, scope, new Map([["caller", caller]]));
  }
}

function workOf(value: Value): number {
  if (typeof value === "string") return value.length;
  if (value instanceof Map) return ENTRY_WORK * value.size;
  return ENTRY_WORK * (itemsOf(value)?.length ?? 0);
}

/** The names that change what a macro takes, where its body uses them. */
function used(body: readonly Node[]): ReadonlySet<string> {
  const found = new Set<string>();
  const visit = (node: unknown): void => {
    if (Array.isArray(node)) return node.forEach(visit);
    if (node instanceof Map) return [...node].forEach(visit);
    if (typeof node !== "object" || node === null) return;
    const { type, value } = node as { type?: unknown; value?: unknown };
    if (type === "Identifier" && typeof value === "string") found.add(value);
    Object.values(node).forEach(visit);
  };
  visit(body);
  return found;
}

function loopMembers(items: readonly Value[], i: number, changed: Callable): Members {
  const beside = (at: number, which: string) => items[at] ?? new Undefined(`there is no ${which} item`);
  return new Members("jinja2.runtime.LoopContext", [
    ["index", i + 1],
    ["index0", i],
    ["revindex", items.length - i],
    ["revindex0", items.length - i - 1],
    ["first", i === 0],
    ["last", i === items.length - 1],
    ["length", items.length],
    ["depth", 1],
    ["depth0", 0],
    ["previtem", i === 0 ? beside(-1, "previous") : items[i - 1]],
    ["nextitem", beside(i + 1, "next")],
    ["changed", changed],
    [
      "cycle",
      new Callable("cycle", (values) => {
        if (values.length === 0) throw new TemplateError("no items for cycling given");
        return values[i % values.length];
      }),
    ],
  ]);
}

const NAMESPACE = "jinja2.utils.Namespace";

/** What every template may call. */
function globals(): [string, Value][] {
  const of = (name: string, call: Callable["call"]): [string, Value] => [name, new Callable(name, call)];
  return [
    of("range", (args) => range(args)),
    of("dict", (args, named) => new Map([...pairs(args[0]), ...named])),
    of(
      "namespace",
      (args, named) =>
        new Members(
          NAMESPACE,
          [...pairs(args[0])].map(([key, value]) => [text(key), value] as const).concat([...named]),
        ),
    ),
    of("joiner", (args, named) => joiner(text(args[0] ?? named.get("sep") ?? ", "))),
    of("cycler", (args) => {
      if (args.length === 0) throw new TemplateError("at least one item has to be provided");
      return cycler(args);
    }),
    of("raise_exception", (args) => {
      throw new TemplateError(text(args[0] ?? ""));
    }),
  ];
}

function pairs(value: Value | undefined): [Value, Value][] {
  if (value === undefined) return [];
  if (value instanceof Map) return [...value];
  return iterate(value).map((pair) => {
    const [key, each] = iterate(pair);
    return [key, each];
  });
}

function range(args: readonly Value[]): Value[] {
  const [start, stop, step = 1] = args.map((each) => {
    if (typeof each === "number" || typeof each === "boolean") return Number(each);
    throw new TemplateError(`'${typeName(each)}' object cannot be interpreted as an integer`);
  });
  if (start === undefined) throw new TemplateError("range expected at least 1 argument, got 0");
  if (step === 0) throw new TemplateError("range() arg 3 must not be zero");
  const [first, end] = stop === undefined ? [0, start] : [start, stop];
  const length = Math.max(0, Math.ceil((end - first) / step));
  if (!(length <= MAX_RANGE)) throw new Refusal("size", `it asked for a range of ${length} numbers`);
  return Array.from({ length }, (_, i) => first + i * step);
}
