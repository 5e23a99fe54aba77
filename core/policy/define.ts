/**
 * From what a policy's file says to a line of the registry: {@link definePolicy}, {@link defineWrapper}.
 *
 * The file's declarations are its types. `score` gets the values that `parameters` declares, a number or one of the
 * choices each, and of the observation what `needs` asks for, a field that is asked for under a condition being optional.
 * What is alike in all policies is filled in here: name, mode, sinks and window, protected ends, budget arithmetic.
 */
import { protectEnds } from "../select/protect.ts";
import type {
  Allocation,
  Budget,
  LayerBudget,
  LayerScores,
  Needs,
  Observation,
  Parameter,
  ParameterValues,
  Policy,
  PolicyEntry,
  PolicyFiles,
  PolicyMode,
  Reduction,
  ScoreMeaning,
} from "./policy.ts";

/** Where needs are found in the observation that are not one field of their own name, and not `window`'s reductions. */
const FIELDS = {
  kernel: [],
  file: [],
  rows: ["keys", "values"],
  queryStatistics: ["queryMean", "queryCovariance"],
  pairStatistics: ["pairs", "pairMean", "pairRest"],
  foresight: [],
} as const satisfies { readonly [need in keyof Needs]?: readonly (keyof Observation)[] };

/** What is known of a layer without measuring. */
type Unmeasured = Pick<Observation, "layer" | "shape" | "length" | "window">;
type Measured = Exclude<keyof Observation, keyof Unmeasured>;

/** An observation that has these fields for sure: `Observed<"mean" | "variance">`. */
export type Observed<F extends Measured = never> =
  & Unmeasured
  & { readonly [field in F]: NonNullable<Observation[field]> };

type FieldsOf<Need, Wanted> = Need extends keyof typeof FIELDS ? (typeof FIELDS)[Need][number]
  : Need extends "window" ? (Wanted extends readonly (infer R extends Reduction)[] ? R : never)
  : Need extends Measured ? Need
  : never;
type Certain<N> = {
  [need in keyof N]-?: Extract<N[need], undefined | false> extends never ? FieldsOf<need, N[need]> : never;
}[keyof N];
type Possible<N> = { [need in keyof N]-?: FieldsOf<need, NonNullable<N[need]>> }[keyof N];

/** What of the observation a policy of these needs may look at. */
export type ObservationOf<N extends Needs> =
  & Observed<Certain<N>>
  & { readonly [field in Exclude<Possible<N>, Certain<N>>]?: Observation[field] };

type ValueOf<P extends Parameter> = P extends { readonly type: "text" }
  ? P extends { readonly choices: readonly (infer Choice)[] } ? Choice : string
  : number;

/** The values of declared parameters by name. */
export type ValuesOf<P extends readonly Parameter[]> = {
  readonly [each in P[number] as each["name"]]: ValueOf<each>;
};

/** What has a name that its type knows: a policy without its words does not compile (`ABOUT` in `registry.ts`). */
export interface Named<Name extends string> {
  readonly name: Name;
}

/** What every policy says of itself; see {@link PolicyEntry}. */
interface Definition<P extends readonly Parameter[]> {
  readonly name: string;
  readonly parameters: P;
  readonly reference?: true;
}

/** A policy with scores of its own. Functions of `values` are asked once, when the policy is made. */
export interface PolicyDefinition<P extends readonly Parameter[], N extends Needs> extends Definition<P> {
  readonly needs: N | ((values: ValuesOf<P>, files: PolicyFiles) => N);
  readonly allocate: Allocation | ((values: ValuesOf<P>) => Allocation);
  /** Default: `order`. */
  readonly meaning?: ScoreMeaning | ((values: ValuesOf<P>) => ScoreMeaning);
  /** Default: `late`. */
  readonly evicts?: (values: ValuesOf<P>) => Policy["evicts"];
  /** In place of a budget. */
  readonly threshold?: (values: ValuesOf<P>) => number;
  /** First and last tokens to protect. Default: the parameters `sinks` and `window`, 0 where there is none. */
  readonly ends?: (values: ValuesOf<P>, mode: PolicyMode) => ProtectedEnds;
  /** Throws where the values don't go together. */
  readonly check?: (values: ValuesOf<P>) => void;
  /** Pure. In our mode the ends are protected if it protects nothing. */
  readonly score: (
    observation: ObservationOf<N>,
    budget: Budget,
    values: ValuesOf<P>,
    mode: PolicyMode,
    files: PolicyFiles,
  ) => LayerScores;
}

/** A policy that works on another's scores. */
export interface WrapperDefinition<P extends readonly Parameter[], N extends Needs> extends Definition<P> {
  /** The scorer taken when none is named. */
  readonly over: string;
  /** Beyond what the scorer needs. */
  readonly needs?: N;
  /** Its counts are uneven where the scorer's are. */
  readonly allocate: Allocation;
  /** Pure: `layer` is what the scorer says, not to be changed. Nothing is protected beyond what it protects. */
  readonly rescore: (
    layer: LayerScores,
    observation: ObservationOf<N>,
    budget: Budget,
    values: ValuesOf<P>,
    mode: PolicyMode,
  ) => LayerScores;
}

interface ProtectedEnds {
  readonly sinks: number;
  readonly window: number;
}

/** A policy with scores of its own, for the registry. */
export function definePolicy<const P extends readonly Parameter[], const N extends Needs, const Name extends string>(
  line: PolicyDefinition<P, N> & Named<Name>,
): PolicyEntry & Named<Name> {
  return entryOf(line, undefined, (given, values, mode, _, files = {}) => {
    const { meaning = { kind: "order" }, ends = endsOf } = line;
    line.check?.(values);
    const needs = typeof line.needs === "function" ? line.needs(values, files) : line.needs;
    return {
      ...given,
      needs,
      allocate: typeof line.allocate === "function" ? line.allocate(values) : line.allocate,
      meaning: typeof meaning === "function" ? meaning(values) : meaning,
      evicts: line.evicts?.(values) ?? "late",
      ...(line.threshold && { threshold: line.threshold(values) }),
      ...ends(values, mode),
      score(observation, budget) {
        checkObserved(observation, needs, line.name);
        const layer = line.score(observation, budget, values, mode, files);
        if (mode === "reference" || layer.protectedEntries) return layer;
        return { ...layer, protectedEntries: protectEnds(budget) };
      },
    };
  });
}

/** A policy that works on another's scores, for the registry. */
export function defineWrapper<const P extends readonly Parameter[], const N extends Needs, const Name extends string>(
  line: WrapperDefinition<P, N> & Named<Name>,
): PolicyEntry & Named<Name> {
  return entryOf(line, line.over, (given, values, mode, scorer) => {
    if (!scorer) throw new RangeError(`Cannot make ${line.name} without a scorer`);
    const { needs, allocate } = line;
    return {
      ...given,
      needs: { ...scorer.needs, ...needs },
      allocate: layerBudgetOf(scorer.allocate).uneven ? { ...allocate, uneven: true } : allocate,
      meaning: { kind: "order" },
      evicts: "late",
      sinks: scorer.sinks,
      window: scorer.window,
      score(observation, budget) {
        checkObserved(observation, needs, line.name);
        return line.rescore(scorer.score(observation, budget), observation, budget, values, mode);
      },
    };
  });
}

/** What a layer gets under an allocation; nothing is said where layers don't have budgets of their own. */
export function layerBudgetOf(allocate: Allocation): LayerBudget {
  return allocate.kind === "head" || allocate.kind === "layer" ? allocate : {};
}

type Filled = Pick<Policy, "name" | "parameters" | "arithmetic">;
type Make<P extends readonly Parameter[]> = (
  filled: Filled,
  values: ValuesOf<P>,
  mode: PolicyMode,
  scorer: Policy | undefined,
  files: PolicyFiles | undefined,
) => Policy;

function entryOf<P extends readonly Parameter[], Name extends string>(
  line: Definition<P> & Named<Name>,
  over: string | undefined,
  make: Make<P>,
): PolicyEntry & Named<Name> {
  const { name, parameters, reference } = line;
  return {
    ...{ name, parameters, reference, over },
    create(given, asked, scorer, files) {
      // Inside another policy's published form, one without such a form is as it always is.
      const mode = reference ? asked : "ours", ours = mode === "ours";
      const filled: Filled = {
        name: ours ? name : `${name}@reference`,
        parameters: given,
        arithmetic: ours ? "floor" : "reference",
      };
      return make(filled, valuesOf(parameters, given), mode, scorer, files);
    },
  };
}

/** The values given, and what those count as that the published code lacks. */
function valuesOf<P extends readonly Parameter[]>(parameters: P, given: ParameterValues): ValuesOf<P> {
  const values: Record<string, number | string> = { ...given };
  for (const { name, type, default: usual } of parameters) values[name] ??= type === "text" ? usual : 0;
  return values as ValuesOf<P>;
}

function endsOf({ sinks = 0, window = 0 }: { readonly sinks?: unknown; readonly window?: unknown }): ProtectedEnds {
  return { sinks: Number(sinks), window: Number(window) };
}

/** @throws RangeError when something asked for was not measured. */
function checkObserved<N extends Needs>(
  observation: Observation,
  needs: N | undefined,
  name: string,
): asserts observation is Observation & ObservationOf<N> {
  for (const [need, wanted] of Object.entries(needs ?? {})) {
    const fields: readonly string[] = !wanted
      ? []
      : need === "window"
      ? wanted
      : fieldsOf(need as Exclude<keyof Needs, "window">);
    const missing = fields.find((field) => observation[field as Measured] === undefined);
    if (missing) throw new RangeError(`Cannot score for ${name}: ${missing} was not measured`);
  }
}

/** A new need that is neither a field nor in {@link FIELDS} does not compile. */
function fieldsOf(need: Exclude<keyof Needs, "window">): readonly Measured[] {
  return need in FIELDS ? FIELDS[need as keyof typeof FIELDS] : [need as Exclude<typeof need, keyof typeof FIELDS>];
}
