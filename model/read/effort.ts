/**
 * `effort`: what a reading may cost for what it keeps. A text that is read once and asked often may cost more than one
 * reading, so `best` has the model repeat it (KVzip), stores what stays as what answers most for its bytes, and refits it
 * where the held-out queries say that this wins.
 */
import { type CacheType, entryBytes } from "../../core/cache/entry_type.ts";
import { inputError, option, PalisadeError, say } from "../../core/errors.ts";
import type { OptionName } from "../../core/options.ts";
import { policyText } from "../../core/policy/policy_text.ts";
import type { Policy } from "../../core/policy/policy.ts";
import { type Stages, withStages } from "../../core/policy/stages.ts";
import { parseBytes, wholeBytes } from "../../core/select/byte_budget.ts";
import type { ModelShape } from "../../core/shape.ts";
import type { Model } from "../model.ts";
import { replayPolicy } from "../default_policy.ts";
import { DEFAULTS } from "../defaults.ts";
import { defaultShare } from "./least_kept.ts";

/** `fast`: as the options say, or the defaults. `best`: the options are chosen, for the bytes that may stay. */
export const EFFORTS = ["fast", "best"] as const;
/** One of {@link EFFORTS}. */
export type Effort = typeof EFFORTS[number];

/** What was chosen for `best`. */
export interface EffortFigures {
  readonly effort: "best";
  /** What may stay, as it was asked for: `2MB`, or a share of the whole float16 cache. */
  readonly bytes: string;
  /** The policy that was taken, stages and all: how entries are stored, and what is refitted. */
  readonly policy: string;
}

/** Shares of the whole float16 cache at which ways were measured, largest first. */
const SHARES = [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64] as const;

interface MeasuredWay {
  readonly rows: CacheType;
  readonly refit: boolean;
  /** Of the ten answers that the full cache gives, those that this way gives too; one for each of {@link SHARES}. */
  readonly answers: readonly number[];
}

/**
 * Ways to spend bytes behind kvzip's replay, those preferred among equals first: fewer bits, which leave room for more
 * entries, and with a refit, which each head takes or leaves by its held-out queries.
 *
 * Source: bench/results/answers_per_byte.md, its lines in bench/results/answers/per_byte_1k.jsonl.gz: SmolLM2-135M, 1,024
 * tokens, the samples of niah_single_2 and niah_multikey_1 with all of their cells that the full cache answers (10 of 11).
 */
const MEASURED: readonly MeasuredWay[] = [
  { rows: "int4", refit: true, answers: [10, 10, 10, 8, 3] },
  { rows: "int4", refit: false, answers: [10, 10, 10, 8, 3] },
  { rows: "k=int8,v=int4", refit: true, answers: [10, 10, 10, 6, 2] },
  { rows: "k=int8,v=int4", refit: false, answers: [10, 10, 9, 6, 2] },
  { rows: "int8", refit: true, answers: [10, 10, 10, 3, 0] },
  { rows: "int8", refit: false, answers: [10, 10, 9, 3, 0] },
  { rows: "f16", refit: true, answers: [10, 10, 3, 0, 0] },
  { rows: "f16", refit: false, answers: [10, 9, 3, 0, 0] },
];

/** What a cache holds whole where it may, finest first. */
const FINEST: readonly CacheType[] = ["f32", "f16", "int8", "k=int8,v=int4", "int4"];

/** What of a backend decides what can be done. */
interface Able {
  readonly packs?: boolean;
  readonly refits?: boolean;
}

/** Options that say what `best` decides. */
const DECIDED = [
  ...["policy", "keep", "risk", "riskWorst", "cacheType", "refit", "merge", "keyChannels"],
] as const satisfies readonly OptionName[];

/**
 * Refuses what is no effort, and options that `best` decides.
 * @throws PalisadeError input `effort.unknown`, usage `effort.exclusive`.
 */
export function checkEffort(
  options: { readonly effort?: string } & { readonly [name in typeof DECIDED[number]]?: unknown },
): Effort {
  const { effort = DEFAULTS.effort } = options, known = EFFORTS.find((each) => each === effort);
  if (!known) {
    throw inputError(
      "effort.unknown",
      `There is no effort "${effort}": want ${EFFORTS.join(" or ")}`,
      option("effort"),
    );
  }
  const rival = known === "best" && DECIDED.find((name) => options[name] !== undefined);
  if (!rival) return known;
  const message = say`${option("effort")} best chooses what ${option(rival)} says: leave one of them out; ${
    option("bytes")
  } says how much may stay`;
  throw new PalisadeError("usage", "effort.exclusive", message, { where: option("effort") });
}

/** The share of the whole float16 cache that the default budget comes to. */
export function defaultBytes(tokens: number, config: ModelShape): string {
  return `${Number((100 * defaultShare(tokens, config)).toFixed(2))}%`;
}

/**
 * How entries are best stored that may take `share` of the whole float16 cache, on a backend that is able to. All of them
 * as fine as they fit; else what answers most by the largest measured size that is no larger.
 */
export function chooseStages(share: number, shape: Pick<ModelShape, "headDim">, { packs, refits }: Able): Stages {
  const { headDim } = shape, can = (rows: CacheType) => packs || !/int4|,/.test(rows);
  const whole = FINEST.find((rows) => can(rows) && share * entryBytes(headDim, "f16") >= entryBytes(headDim, rows));
  if (whole) return { rows: whole };
  const at = SHARES.findIndex((each) => each <= share), size = at === -1 ? SHARES.length - 1 : at;
  const ways = MEASURED.filter(({ rows, refit }) => can(rows) && (refits || !refit));
  const { rows, refit } = ways.reduce((best, way) => way.answers[size] > best.answers[size] ? way : best);
  return { rows, ...(refit && { refit: "both" }) };
}

/** A refit goes by one layer's queries, so not where others look at its rows, too. */
function ableOf({ sources }: ModelShape, { packs, refits }: Able): Able {
  return { packs, refits: refits && !sources };
}

/** What is read by, for `best`. */
export interface Chosen {
  readonly policy: Policy;
  readonly bytes: string;
  readonly figures: EffortFigures;
}

/**
 * The policy, and how what it keeps is stored, for the context `ids`.
 * @throws PalisadeError input `effort.no-room` where nothing can be repeated behind the text, `bytes.*`.
 */
export function chooseBest(
  model: Pick<Model, "config" | "tokenizer" | "frame" | "backend">,
  ids: readonly number[],
  { bytes = defaultBytes(ids.length, model.config), beyondTrained, rolling }: {
    readonly bytes?: string;
    readonly beyondTrained?: boolean;
    /** The context fills the trained length. */
    readonly rolling: boolean;
  },
): Chosen {
  const replay = rolling ? undefined : replayPolicy(model, ids, beyondTrained);
  if (!replay) {
    const message = say`${
      option("effort")
    } best repeats the text behind itself, and ${ids.length} tokens leave no room: \
${model.config.name} was trained on ${model.config.contextLength}; take ${option("effort")} fast`;
    throw inputError("effort.no-room", message, option("effort"));
  }
  const asked = parseBytes(bytes), { config, backend } = model;
  const share = "share" in asked ? asked.share : asked.bytes / wholeBytes(ids.length, config);
  const policy = withStages(replay, chooseStages(share, config, ableOf(config, backend)));
  return { policy, bytes, figures: { effort: "best", bytes, policy: policyText(policy) } };
}
