/** The layers of an open dump, as eviction reads them: shapes checked before the first number is read. */
import { type OptionMention, say } from "../../core/options.ts";
import { inputError, PalisadeError } from "../../core/errors.ts";
import type { DumpLayers, EvictOptions, LayerWants } from "../../core/dump/layers.ts";
import type { LayerDump } from "../../core/dump/evict.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";
import { observationFor } from "../../core/measure/window.ts";
import type { Needs, Policy } from "../../core/policy/policy.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import type { AttentionShape } from "../../core/shape.ts";
import type { GateWeights } from "../gate/scorer.ts";
import { isCalibrated } from "../statistics/needed.ts";
import { countNotFinite } from "./floats.ts";
import { findParts, type FoundParts, type Part, PARTS, type Patterns } from "./names.ts";
import { queriesFromHidden, sameQueries } from "./queries.ts";
import { gateFromHidden } from "./gate.ts";
import { type DumpContainer, dumpError, type DumpTensor, sizeOf } from "./tensors.ts";

/** How the model turns queries and keys. */
export interface DumpRope {
  /** Base of the frequencies, > 0; 10000 in most models. */
  readonly theta: number;
  /** Default `half`, as transformers has them. */
  readonly pairs?: KeyRotation["pairs"];
  /** Dimensions that are turned, even. Default: all of a head. */
  readonly rotated?: number;
}

/** How the tensors of a dump are called, and what is known beside them. */
export interface DumpOptions {
  readonly patterns?: Patterns;
  readonly rope?: DumpRope;
  /** Scores for policy `gate` where the dump has hidden states. */
  readonly gate?: GateWeights;
  readonly signal?: AbortSignal;
}

/** Numbers that are NaN or infinite, by part. */
export type NotFinite = Readonly<Partial<Record<Part, number>>>;

/** Where a part of one layer lies, with its shape behind leading ones. */
interface Slice {
  readonly tensor: DumpTensor;
  readonly first: number;
  readonly shape: readonly number[];
}

/** What is asked for beside kept entries. */
type Wanted = Pick<EvictOptions, "explain" | "risk">;

/** How many of the last queries a policy, and a certificate of it, look through. */
interface Plan {
  readonly policy: Policy;
  readonly window: number;
  readonly certificate: number;
}

/** Dimensions of each part. */
const RANKS: Readonly<Record<Part, number>> = {
  ...{ q: 3, k: 3, v: 3, wo: 2, hidden: 2, wq: 2 },
  ...{ gate: 2, reconstruction: 2, softTokens: 2 },
};
const SCORES = ["gate", "reconstruction", "softTokens"] as const satisfies readonly Part[];
const NONE = new Float32Array(0);

/** An open dump whose layers `evictLayers` reads. */
export class Dump implements DumpLayers, AsyncDisposable {
  readonly #container: DumpContainer;
  readonly #options: DumpOptions;
  readonly #slices: readonly ReadonlyMap<Part, Slice>[];
  readonly #rotation?: KeyRotation;
  readonly #notFinite = new Map<number, Partial<Record<Part, number>>>();
  readonly shape: AttentionShape;
  readonly length: number;
  /** The layers' own numbers; eviction counts them from 0. */
  readonly numbers: readonly number[];
  #plan: Plan | undefined;

  private constructor(
    container: DumpContainer,
    options: DumpOptions,
    numbers: readonly number[],
    slices: readonly ReadonlyMap<Part, Slice>[],
  ) {
    this.#container = container;
    this.#options = options;
    this.#slices = slices;
    this.numbers = numbers;
    const [kvHeads, length, headDim] = slices[0].get("k")!.shape;
    this.length = length;
    this.shape = { kvHeads, headDim, heads: headsOf(slices[0], kvHeads, headDim) };
    slices.forEach((parts, i) => checkShapes(parts, this.shape, length, `layer ${numbers[i]} of ${container.name}`));
    this.#rotation = options.rope && rotationOf(options.rope, headDim);
  }

  /**
   * Finds the layers in a container, which it takes over.
   * @throws PalisadeError `dump.*`, and what the container refuses.
   */
  static async open(container: DumpContainer, options: DumpOptions = {}): Promise<Dump> {
    try {
      const found = findParts(container.names, options.patterns ?? {}, container.name);
      const { numbers, slices } = await slicesOf(container, found);
      return new Dump(container, options, numbers, slices);
    } catch (error) {
      await container.close();
      throw error;
    }
  }

  get layers(): number {
    return this.numbers.length;
  }

  /** What was not finite in a layer, of the parts read so far. */
  notFinite(layer: number): NotFinite {
    return this.#notFinite.get(layer) ?? {};
  }

  /**
   * Checks that the dump has what a policy looks at, and what `options` ask for, before anything is read.
   * @throws PalisadeError `dump.lacks`, naming the tensor, and the policies that do without.
   */
  prepare(policy: Policy, { explain, risk }: Wanted): void {
    this.#plan = this.#planFor(policy);
    const lack = this.#lackOf(this.#plan, { explain, risk });
    if (lack?.code !== "dump.lacks") {
      if (lack) throw lack;
      return;
    }
    const others = policies.map(({ name }) => name).filter((name) => this.#serves(name, { explain, risk }));
    throw others.length === 0 ? lack : lack.again({ more: `; it can serve ${others.join(", ")}` });
  }

  #planFor(policy: Policy): Plan {
    const whole = { length: this.length, window: Math.min(policy.window, this.length) };
    const window = policy.needs.window ? whole.window : 0;
    return { policy, window, certificate: observationFor(policy, whole).window };
  }

  /** Whether the dump has what a policy, as it is by itself, looks at; one that reads a file is left out. */
  #serves(name: string, wanted: Wanted): boolean {
    const policy = resolvePolicy(name);
    return !policy.needs.file && this.#lackOf(this.#planFor(policy), wanted) === undefined;
  }

  /** The refusal of the first layer that lacks something. */
  #lackOf(plan: Plan, { explain, risk }: Wanted): PalisadeError | undefined {
    const wants = { policy: plan.policy.allocate.kind !== "all", risk: risk !== undefined, certificate: explain };
    try {
      this.numbers.forEach((_, layer) => this.#checkNeeds(layer, plan, wants));
    } catch (error) {
      if (error instanceof PalisadeError) return error;
      throw error;
    }
  }

  #checkNeeds(layer: number, { policy, window, certificate }: Plan, wants: LayerWants): void {
    const { needs, name } = policy, parts = this.#slices[layer];
    const lacks = (what: string, who = `policy ${name}`) => {
      const at = `layer ${this.numbers[layer]} of ${this.#container.name}`;
      return dumpError(
        "lacks",
        `${who} needs ${what}: ${at} has ${[...parts.keys()].join(", ")}`,
        what.split(/[ ,]/)[0],
      );
    };
    const rows = this.#queryRows(layer);
    if (wants.policy) {
      if (isCalibrated(needs)) throw lacks("statistics of a model's queries, which go with its file");
      const all = wantsAllQueries(needs);
      if (all && rows < this.length) {
        throw lacks(`q, the queries of all ${this.length} tokens (or hidden and wq, and the rotation)`);
      }
      if (rows < window) throw lacks(`q, the queries of the last ${window} tokens`);
      if ((needs.queryStatistics || needs.pairStatistics || needs.moved) && !this.#rotation) {
        throw this.#lacksRotation(name);
      }
      if ((needs.valueNorms || needs.rows || needs.dropErrors) && !parts.has("v")) throw lacks("v, the values");
      if (needs.valueNorms && !parts.has("wo")) throw lacks("wo, the output projection");
      if (needs.reconstruction && !parts.has("reconstruction")) {
        throw lacks("reconstruction, the attention while the model repeats the context");
      }
      if (needs.selfGate) throw lacks("a model that reads the text, for a gate to be fitted on it");
      if (needs.softTokens && !parts.has("softTokens")) throw lacks("softTokens, the attention of soft tokens");
      const byFile = this.#options.gate && parts.has("hidden");
      if (needs.gate && !parts.has("gate") && !byFile) {
        throw lacks("gate, what a gate predicts (or hidden, and a gate's file)");
      }
    }
    if ((wants.risk || wants.certificate) && rows < certificate) {
      throw lacks(`q, the queries of the last ${certificate} tokens`, wants.risk ? "a risk" : "a certificate");
    }
    if (wants.certificate && !parts.has("v")) throw lacks("v, the values", "a certificate");
  }

  #lacksRotation(name: string) {
    const rope: OptionMention = { option: "rope" };
    return inputError(
      "dump.rotation",
      say`policy ${name} needs queries before RoPE, or at other positions: say how they were turned, ${rope}`,
      rope,
    );
  }

  /** Queries that there are, or that hidden states give. */
  #queryRows(layer: number): number {
    const parts = this.#slices[layer], computed = parts.has("hidden") && parts.has("wq") && this.#rotation;
    return computed ? this.length : parts.get("q")?.shape[1] ?? 0;
  }

  /**
   * Reads what is wanted of one layer, once {@link prepare} has said it is there.
   * @throws PalisadeError `dump.queries` where hidden states give other queries than there are; `dump.type`, `file.*`.
   */
  async read(layer: number, wants: LayerWants): Promise<LayerDump> {
    const { policy: { needs } } = this.#plan!, own = wants.policy ? needs : {};
    const values = own.valueNorms || own.rows || own.dropErrors || wants.certificate;
    const queries = await this.#queries(layer, wants);
    const wo = (own.valueNorms || wants.certificate) && await this.#part(layer, "wo");
    const keys = own.window || own.columnSum || own.columnMax || own.moved || own.rows || wants.risk ||
      wants.certificate;
    return {
      keys: keys ? (await this.#part(layer, "k"))! : NONE,
      values: values ? (await this.#part(layer, "v"))! : NONE,
      queries,
      queryRows: queries.length / (this.shape.heads * this.shape.headDim),
      ...(wo && { wo }),
      ...(own.gate && { gate: await this.#gate(layer) }),
      ...(own.reconstruction && { reconstruction: await this.#part(layer, "reconstruction") }),
      ...(own.softTokens && { softTokens: await this.#part(layer, "softTokens") }),
      ...(this.#rotation && { rotation: this.#rotation }),
    };
  }

  async #queries(layer: number, { policy, risk, certificate }: LayerWants): Promise<Float32Array> {
    const { policy: { needs }, ...windows } = this.#plan!, parts = this.#slices[layer];
    const all = policy && wantsAllQueries(needs);
    const rows = all
      ? this.length
      : Math.max(policy ? windows.window : 0, risk || certificate ? windows.certificate : 0);
    if (rows === 0) return NONE;
    const q = parts.get("q"), there = q?.shape[1] ?? 0;
    if (there >= rows) return await this.#lastRows(layer, rows);
    const hidden = await this.#part(layer, "hidden"), wq = await this.#part(layer, "wq");
    const input = { shape: this.shape, hidden: hidden!, wq: wq!, length: this.length, rotation: this.#rotation! };
    const computed = queriesFromHidden(input, rows);
    if (there > 0 && !sameQueries(computed, await this.#lastRows(layer, there), this.shape)) {
      const at = `layer ${this.numbers[layer]} of ${this.#container.name}`;
      const message =
        `hidden and wq don't give the queries of ${at}: the model does more to them (a bias, a norm), or turns ` +
        `them otherwise; dump q of all tokens`;
      throw dumpError("queries", message, "q");
    }
    return computed;
  }

  /** `[heads, rows, headDim]`, the last ones: only they are read. */
  async #lastRows(layer: number, rows: number): Promise<Float32Array> {
    const { heads, headDim } = this.shape, { tensor, first, shape } = this.#slices[layer].get("q")!, there = shape[1];
    const last = new Float32Array(heads * rows * headDim), { signal } = this.#options;
    if (rows === there) return this.#counted(layer, "q", await tensor.read(first, sizeOf(shape), signal));
    for (let head = 0; head < heads; head++) {
      const from = first + (head * there + there - rows) * headDim;
      last.set(await tensor.read(from, rows * headDim, signal), head * rows * headDim);
    }
    return this.#counted(layer, "q", last);
  }

  async #gate(layer: number): Promise<Float32Array> {
    const given = await this.#part(layer, "gate");
    if (given) return given;
    const hidden = await this.#part(layer, "hidden");
    return gateFromHidden(this.#options.gate!, { layer, layers: this.layers, ...this.shape }, hidden!, this.length);
  }

  async #part(layer: number, part: Part): Promise<Float32Array | undefined> {
    const slice = this.#slices[layer].get(part);
    if (!slice) return undefined;
    return this.#counted(layer, part, await slice.tensor.read(slice.first, sizeOf(slice.shape), this.#options.signal));
  }

  #counted(layer: number, part: Part, values: Float32Array): Float32Array {
    const count = countNotFinite(values), known = this.#notFinite.get(layer) ?? {};
    if (count > 0) this.#notFinite.set(layer, { ...known, [part]: count });
    return values;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#container.close();
  }
}

/** Whether a policy looks at the queries of every token. */
function wantsAllQueries({ columnSum, columnMax, queryStatistics, pairStatistics, moved }: Needs): boolean {
  return Boolean(columnSum || columnMax || queryStatistics || pairStatistics || moved);
}

async function slicesOf(container: DumpContainer, found: FoundParts) {
  const stacked = new Map<Part, DumpTensor>();
  for (const [part, name] of found.names) if (typeof name === "string") stacked.set(part, await container.tensor(name));
  const numbers = found.layers ?? stackedLayers(stacked.get("k")!, container.name);
  const slices: ReadonlyMap<Part, Slice>[] = [];
  for (const [i, number] of numbers.entries()) {
    const parts = new Map<Part, Slice>();
    for (const part of PARTS) {
      const name = found.names.get(part), all = stacked.get(part);
      if (all) parts.set(part, sliceOf(all, part, numbers.length, i, container.name));
      else if (typeof name === "object" && name.has(number)) {
        parts.set(part, sliceOf(await container.tensor(name.get(number)!), part, 0, 0, container.name));
      }
    }
    slices.push(parts);
  }
  return { numbers, slices };
}

/** Keys of one layer, `[kvHeads, L, headDim]`, or of several, `[layers, …]`. */
function stackedLayers({ name, shape }: DumpTensor, file: string): number[] {
  if (shape.length === 3) return [0];
  if (shape.length < 3 || shape[0] === 0) {
    throw badShape(name, shape, "[layers, KV heads, tokens, head dimension]", file);
  }
  return Array.from({ length: shape[0] }, (_, i) => i);
}

/** One layer's part of a tensor. `layers` > 0: the tensor holds so many, or one without saying so. */
function sliceOf(tensor: DumpTensor, part: Part, layers: number, layer: number, file: string): Slice {
  const { name, shape } = tensor, rank = RANKS[part];
  const stacked = layers > 0 && shape.length > rank;
  const inner = stacked ? shape.slice(1) : shape, own = inner.slice(Math.max(0, inner.length - rank));
  const batch = inner.slice(0, inner.length - own.length);
  if (own.length !== rank || (stacked && shape[0] !== layers)) {
    throw badShape(name, shape, `${rank} dimensions${stacked ? ` of ${layers} layers` : ""}`, file);
  }
  if (batch.some((size) => size !== 1)) throw badShape(name, shape, "one sequence: a batch of 1", file);
  return { tensor, first: stacked ? layer * sizeOf(own) : 0, shape: own };
}

function badShape(name: string, shape: readonly number[], wanted: string, file: string) {
  return dumpError("shape", `${name} of ${file} is ${shape.join(" × ") || "one number"}: want ${wanted}`, name);
}

function headsOf(parts: ReadonlyMap<Part, Slice>, kvHeads: number, headDim: number): number {
  const q = parts.get("q")?.shape[0], wide = parts.get("wq")?.shape[0] ?? parts.get("wo")?.shape[1];
  return q ?? (wide === undefined ? kvHeads : wide / headDim);
}

function checkShapes(
  parts: ReadonlyMap<Part, Slice>,
  { heads, kvHeads, headDim }: AttentionShape,
  length: number,
  where: string,
): void {
  const shapeOf = (part: Part) => parts.get(part)?.shape;
  const check = (part: Part, wanted: readonly number[], words: string) => {
    const shape = shapeOf(part);
    if (!shape || shape.every((size, i) => Number.isNaN(wanted[i]) ? size > 0 : size === wanted[i])) return;
    throw dumpError("shape", `${part} of ${where} is ${shape.join(" × ")}: want ${words}`, part);
  };
  const free = NaN, rows = [kvHeads, length, headDim], inner = heads * headDim;
  if (rows.some((size) => size === 0)) {
    throw dumpError("empty", `The keys of ${where} are ${rows.join(" × ")}: none`, "k");
  }
  if (!Number.isInteger(heads / kvHeads) || heads === 0) {
    throw dumpError("shape", `${heads} query heads of ${where} don't divide over ${kvHeads} KV heads`, "q");
  }
  check("k", rows, `${rows.join(" × ")} as in the first layer`);
  check("v", rows, `${rows.join(" × ")} as the keys`);
  check("q", [heads, free, headDim], `${heads} × tokens × ${headDim}`);
  if ((shapeOf("q")?.[1] ?? 0) > length) throw dumpError("shape", `q of ${where} has more than ${length} tokens`, "q");
  check("wo", [free, inner], `width × ${inner}`);
  check("hidden", [length, free], `${length} × width`);
  check("wq", [inner, shapeOf("hidden")?.[1] ?? free], `${inner} × the width of hidden`);
  for (const part of SCORES) check(part, [kvHeads, length], `${kvHeads} × ${length}`);
}

function rotationOf({ theta, pairs = "half", rotated }: DumpRope, headDim: number): KeyRotation {
  const turned = rotated ?? headDim;
  if (turned > headDim || turned % 2 !== 0) {
    throw inputError(
      "dump.rotation",
      `Can't turn ${turned} of ${headDim} dimensions: want an even number, at most that`,
      { option: "rope" },
    );
  }
  const frequencies = Float64Array.from({ length: turned / 2 }, (_, j) => theta ** (-2 * j / turned));
  return { pairs, rotated: turned, frequencies };
}
