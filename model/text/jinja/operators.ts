/** Python's operators and member access on the values of a template. */
import { containerMethod } from "./filters.ts";
import { percent, repeated } from "./strings.ts";
import {
  compare,
  contains,
  defined,
  equal,
  Float,
  itemsOf,
  keyOf,
  Members,
  numeric,
  TemplateError,
  text,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** `left operator right`, both known; `and` and `or` are the interpreter's. */
export function operate(operator: string, left: Value, right: Value): Value {
  switch (operator) {
    case "==":
      return equal(left, right);
    case "!=":
      return !equal(left, right);
    case "~":
      return text(left) + text(right);
    case "in":
      return contains(right, left);
    case "not in":
      return !contains(right, left);
    case "<":
      return compare(left, right) < 0;
    case "<=":
      return compare(left, right) <= 0;
    case ">":
      return compare(left, right) > 0;
    case ">=":
      return compare(left, right) >= 0;
    default:
      return arithmetic(operator, defined(left), defined(right));
  }
}

function arithmetic(operator: string, left: Value, right: Value): Value {
  const a = numeric(left), b = numeric(right);
  if (a !== undefined && b !== undefined) {
    const float = left instanceof Float || right instanceof Float || operator === "/" || (operator === "**" && b < 0);
    const result = calculate(operator, a, b);
    return float ? new Float(result) : result;
  }
  if (operator === "%" && typeof left === "string") return percent(left, right);
  if (operator === "+") return joined(left, right);
  if (operator === "*") {
    const [whole, times] = typeof right === "number" || typeof right === "boolean" ? [left, right] : [right, left];
    if (typeof times === "number" || typeof times === "boolean") return multiplied(whole, Number(times));
  }
  throw unsupported(operator, left, right);
}

function calculate(operator: string, a: number, b: number): number {
  if (b === 0 && (operator === "/" || operator === "//" || operator === "%")) {
    throw new TemplateError("division by zero");
  }
  switch (operator) {
    case "+":
      return a + b;
    case "-":
      return a - b;
    case "*":
      return a * b;
    case "/":
      return a / b;
    case "//":
      return Math.floor(a / b);
    case "%":
      return a - b * Math.floor(a / b);
    case "**":
      return a ** b;
    default:
      throw new TemplateError(`unknown operator ${operator}`);
  }
}

function unsupported(operator: string, left: Value, right: Value): TemplateError {
  return new TemplateError(
    typeof left === "string" && operator === "+"
      ? `can only concatenate str (not "${typeName(right)}") to str`
      : `unsupported operand type(s) for ${operator}: '${typeName(left)}' and '${typeName(right)}'`,
  );
}

function joined(left: Value, right: Value): Value {
  if (typeof left === "string" && typeof right === "string") return left + right;
  if (Array.isArray(left) && Array.isArray(right)) return [...left, ...right];
  if (left instanceof Tuple && right instanceof Tuple) return new Tuple([...left.items, ...right.items]);
  throw unsupported("+", left, right);
}

const MAX_ITEMS = 1_000_000;

function multiplied(whole: Value, times: number): Value {
  if (typeof whole === "string") return repeated(whole, times);
  const items = itemsOf(whole);
  if (!items) throw unsupported("*", whole, times);
  if (items.length * times > MAX_ITEMS) throw new TemplateError("a repeated list is too long");
  const all = Array.from({ length: Math.max(0, times) }, () => items).flat();
  return Array.isArray(whole) ? all : new Tuple(all);
}

/** `-value`, `+value`. */
export function signed(sign: string, value: Value): Value {
  const found = numeric(defined(value));
  if (found === undefined) throw new TemplateError(`bad operand type for unary ${sign}: '${typeName(value)}'`);
  const result = sign === "-" ? (found === 0 && !(value instanceof Float) ? 0 : -found) : found;
  return value instanceof Float ? new Float(result) : result;
}

/** `value.name`: a member of the object before a key of that name. */
export function attribute(value: Value, name: string): Value {
  return memberOf(defined(value), name) ?? itemAt(value, name) ?? missing(value, name);
}

/** `value[key]`: a key before a member of that name. */
export function item(value: Value, key: Value): Value {
  const known = defined(value);
  return itemAt(known, key) ?? (typeof key === "string" ? memberOf(known, key) : undefined) ?? missing(known, key);
}

function memberOf(value: Value, name: string): Value | undefined {
  if (value instanceof Members) return value.members.get(name);
  return containerMethod(value, name);
}

function itemAt(value: Value, key: Value): Value | undefined {
  if (value instanceof Map) return value.get(keyOf(key));
  if (typeof key !== "number" && typeof key !== "boolean") return undefined;
  const all = typeof value === "string" ? Array.from(value) : itemsOf(value);
  return all?.at(Number(key));
}

function missing(value: Value, key: Value): Undefined {
  const type = value === null
    ? "None"
    : value instanceof Members
    ? `${value.kind} object`
    : `${typeName(value)} object`;
  return new Undefined(
    typeof key === "string" ? `'${type}' has no attribute '${key}'` : `${type} has no element ${text(key)}`,
  );
}
