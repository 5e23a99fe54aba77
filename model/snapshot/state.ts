/** What a snapshot says of its context besides the arrays: counters, budget, words, figures. JSON, checked field by field. */
import type { Budget } from "../../core/policy/policy.ts";
import { REFITS } from "../../core/refit/refit.ts";
import type { ModelShape } from "../../core/shape.ts";
import type { Context } from "../context.ts";
import type { WorstCase } from "../gate/worst_case.ts";
import type { EffortFigures } from "../read/effort.ts";
import type { KeyChannelFigures } from "../read/key_channels.ts";
import type { MergeFigures } from "../read/merge.ts";
import type { RefitFigures } from "../read/refit.ts";
import { refuse } from "./format.ts";
import { type Identity, IDENTITY_FIELDS } from "./identity.ts";

type RiskState = NonNullable<Context["risk"]>;

/** Who made it, on what, when. */
export interface MadeBy {
  /** Of palisade. */
  readonly version: string;
  readonly runtime: string;
  readonly backend: string;
  readonly dense: string;
  /** ISO 8601, UTC. */
  readonly at: string;
}

export interface SavedState {
  readonly made: MadeBy;
  /** What people call the model. */
  readonly modelName: string;
  /** What people call the text, such as its file's name; empty when nobody said. */
  readonly label: string;
  /** The policy as a text that names it again. */
  readonly policy: string;
  /** Context tokens read. */
  readonly tokens: number;
  readonly replaced: number;
  /** Logical position of the next token, and how many tokens there were. */
  readonly position: number;
  readonly seen: number;
  readonly budget: Omit<Budget, "model">;
  readonly keepCapped: boolean;
  readonly leastKept: boolean;
  /** Tokens that the frame put in front of the text. */
  readonly frameTokens: number;
  readonly beyondTrained: boolean;
  /** Positions of control tokens in the context. */
  readonly markers: readonly number[];
  /** The last token of a text that is gone on with; empty otherwise. */
  readonly lead: readonly number[];
  /** Name of the words around text and question, and the words. */
  readonly frame: { readonly name: string; readonly text: string };
  /** The day that the template was told. */
  readonly date?: string;
  readonly risk?: RiskState;
  /** What reading cost, milliseconds. */
  readonly ms: { readonly prefill: number; readonly evict: number };
  /** The name of what the reading left for texts to come, where it left something (`model/gate/learned.ts`). */
  readonly left?: string;
  /** What was done to what stays, besides choosing it. */
  readonly done: Pick<Context, "effort" | "refit" | "merge" | "keyChannels">;
}

/** The metadata of a snapshot. */
export function stateMetadata(identity: Identity, state: SavedState): Record<string, string> {
  return {
    identity: JSON.stringify(IDENTITY_FIELDS.map((field) => [field, identity[field]])),
    state: JSON.stringify(
      state,
      (_, value) => typeof value === "number" && !Number.isFinite(value) ? `${value}` : value,
    ),
  };
}

/**
 * The same read and checked; `file` is the snapshot's name for messages.
 * @throws PalisadeError input `snapshot.state`, where = `header`.
 */
export function readMetadata(
  metadata: ReadonlyMap<string, string>,
  shape: ModelShape | undefined,
  file: string,
): { identity: Identity; state: SavedState } {
  const identity = identityOf(parsed(metadata.get("identity"), file), file);
  return { identity, state: stateOf(new Fields(parsed(metadata.get("state"), file), "state", file), shape) };
}

function bad(file: string, what: string) {
  return refuse("state", file, "header", `its header is of another form: ${what}`);
}

function parsed(text: string | undefined, file: string): unknown {
  if (text === undefined) throw bad(file, "identity or state is missing");
  try {
    return JSON.parse(text);
  } catch {
    throw bad(file, "identity or state is no JSON");
  }
}

function identityOf(value: unknown, file: string): Identity {
  const pairs = Array.isArray(value) ? value : [];
  const fits = pairs.length === IDENTITY_FIELDS.length &&
    pairs.every((pair, i) =>
      Array.isArray(pair) && pair.length === 2 && pair[0] === IDENTITY_FIELDS[i] && typeof pair[1] === "string"
    );
  if (!fits) throw bad(file, `identity wants the fields ${IDENTITY_FIELDS.join(", ")}`);
  return Object.fromEntries(pairs) as unknown as Identity;
}

function stateOf(fields: Fields, shape: ModelShape | undefined): SavedState {
  const made = fields.object("made"), ms = fields.object("ms"), frame = fields.object("frame");
  const tokens = fields.count("tokens", 1), lead = fields.counts("lead");
  const budget = budgetOf(fields.object("budget"), tokens, shape);
  return {
    made: {
      version: made.text("version"),
      runtime: made.text("runtime"),
      backend: made.text("backend"),
      dense: made.text("dense"),
      at: made.text("at"),
    },
    modelName: fields.text("modelName"),
    label: fields.text("label"),
    policy: fields.text("policy"),
    tokens,
    replaced: fields.count("replaced"),
    position: fields.count("position", 0, tokens),
    seen: fields.count("seen", tokens, tokens),
    budget,
    keepCapped: fields.flag("keepCapped"),
    leastKept: fields.flag("leastKept"),
    frameTokens: fields.count("frameTokens", 0, tokens),
    beyondTrained: fields.flag("beyondTrained"),
    markers: ascending(fields.counts("markers"), tokens, fields),
    lead: lead.length <= 1 ? lead : fields.fail("lead", "at most one token"),
    frame: { name: frame.text("name"), text: frame.text("text") },
    ...(fields.has("date") && { date: fields.text("date") }),
    ...(fields.has("risk") && { risk: riskOf(fields.object("risk")) }),
    ms: { prefill: ms.number("prefill"), evict: ms.number("evict") },
    ...(fields.has("left") && { left: fields.text("left") }),
    // Snapshots of before say nothing of it.
    done: fields.has("done") ? doneOf(fields.object("done")) : {},
  };
}

function budgetOf(fields: Fields, tokens: number, shape?: ModelShape): SavedState["budget"] {
  const heads = shape ? shape.kvHeads : MOST, all = shape ? heads * shape.layers : MOST;
  const most = (times: number) => Math.min(MOST, tokens * times);
  return {
    length: fields.count("length", tokens, tokens),
    fraction: fields.number("fraction"),
    perHead: fields.count("perHead", 0, tokens),
    perLayer: fields.count("perLayer", 0, most(heads)),
    total: fields.count("total", 0, most(all)),
    sinks: fields.count("sinks"),
    window: fields.count("window"),
    windowAsked: fields.count("windowAsked"),
  };
}

function riskOf(fields: Fields): RiskState {
  const figures = ["asked", "reached", "passes", "peakBytes"] as const;
  const known = figures.filter((name) => fields.has(name)).map((name) => [name, fields.number(name)]);
  const given = Object.fromEntries(known) as Partial<Record<typeof figures[number], number>>;
  const worst = fields.has("worstCase") ? { worstCase: worstCaseOf(fields.object("worstCase")) } : {};
  const limit = fields.number("limit");
  if (fields.text("kind") !== "mean") return { kind: "worst", limit, ...given, ...worst };
  return { kind: "mean", limit, maxCacheBytes: fields.number("maxCacheBytes"), ...given, ...worst };
}

function doneOf(fields: Fields): SavedState["done"] {
  const of = <T>(name: string, read: (each: Fields) => T) => fields.has(name) && { [name]: read(fields.object(name)) };
  return { ...of("effort", effortOf), ...of("refit", refitOf), ...of("merge", mergeOf), ...of("keyChannels", thinOf) };
}

function effortOf(fields: Fields): EffortFigures {
  return { effort: fields.oneOf("effort", ["best"]), bytes: fields.text("bytes"), policy: fields.text("policy") };
}

function refitOf(fields: Fields): RefitFigures {
  const [tokens, heads, of] = ["tokens", "heads", "of"].map((name) => fields.count(name));
  const [before, after, ms] = ["before", "after", "ms"].map((name) => fields.number(name));
  return { refit: fields.oneOf("refit", REFITS), tokens, heads, of, before, after, ms };
}

function mergeOf(fields: Fields): MergeFigures {
  const [window, merged, lost] = ["window", "merged", "lost"].map((name) => fields.count(name));
  return { merge: fields.oneOf("merge", ["mean", "sum"]), window, merged, lost, ms: fields.number("ms") };
}

function thinOf(fields: Fields): KeyChannelFigures {
  const [channels, of, entries, recent, window] = ["channels", "of", "entries", "recent", "window"]
    .map((name) => fields.count(name));
  return { channels, of, entries, recent, window, ms: fields.number("ms") };
}

function worstCaseOf(fields: Fields): WorstCase {
  return {
    coverage: fields.number("coverage"),
    margin: fields.number("margin"),
    threshold: fields.number("threshold"),
    texts: fields.count("texts"),
    textTokens: fields.count("textTokens"),
  };
}

function ascending(positions: readonly number[], end: number, fields: Fields): readonly number[] {
  const fits = positions.every((position, i) => position < end && (i === 0 || position > positions[i - 1]));
  return fits ? positions : fields.fail("markers", "ascending positions of the context");
}

const MOST = Number.MAX_SAFE_INTEGER;

/** The fields of a JSON object; each is checked when it is asked for. */
class Fields {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #path: string;
  readonly #file: string;

  constructor(value: unknown, path: string, file: string) {
    this.#path = path;
    this.#file = file;
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw bad(file, `${path} is no object`);
    this.#values = value as Readonly<Record<string, unknown>>;
  }

  fail(name: string, wanted: string): never {
    throw bad(this.#file, `${this.#path}.${name} wants ${wanted}`);
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#values, name);
  }

  object(name: string): Fields {
    return new Fields(this.#own(name), `${this.#path}.${name}`, this.#file);
  }

  text(name: string): string {
    const value = this.#own(name);
    return typeof value === "string" ? value : this.fail(name, "a text");
  }

  flag(name: string): boolean {
    const value = this.#own(name);
    return typeof value === "boolean" ? value : this.fail(name, "true or false");
  }

  oneOf<T extends string>(name: string, known: readonly T[]): T {
    const value = this.#own(name), found = known.find((each) => each === value);
    return found ?? this.fail(name, known.join(" or "));
  }

  /** Any number; those that JSON can't say are texts. */
  number(name: string): number {
    const value = this.#own(name);
    if (typeof value === "number") return value;
    return /^(NaN|-?Infinity)$/.test(String(value)) ? Number(value) : this.fail(name, "a number");
  }

  count(name: string, least = 0, most = MOST): number {
    const value = this.#own(name);
    const fits = Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most;
    return fits ? value as number : this.fail(name, `a whole number from ${least} to ${most}`);
  }

  counts(name: string): readonly number[] {
    const value = this.#own(name);
    const fits = Array.isArray(value) && value.every((each) => Number.isSafeInteger(each) && each >= 0);
    return fits ? value : this.fail(name, "a list of whole numbers");
  }

  #own(name: string): unknown {
    return this.has(name) ? this.#values[name] : undefined;
  }
}
