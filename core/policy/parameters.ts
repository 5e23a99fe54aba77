/** Parameters that several policies share. */
import type { Parameter, PolicyFileNeed, QueryStatisticsNeed } from "./policy.ts";

/** The parameter as it is, with a type that knows its name and choices: for those that several policies share. */
export function parameter<const P extends Parameter>(declared: P): P {
  return declared;
}

/** The same of a whole list: for policies that share one, or name its type. */
export function parameters<const P extends readonly Parameter[]>(declared: P): P {
  return declared;
}

/** First tokens of the context that are never evicted. 4: StreamingLLM's choice (arXiv 2309.17453). */
export const SINKS = parameter({
  name: "sinks",
  type: "integer",
  default: 4,
  min: 0,
  max: 65536,
});

/** Observation window. 32: DefensiveKV's choice; upstream kvpress has 64. */
export const WINDOW = parameter({
  name: "window",
  type: "integer",
  default: 32,
  min: 1,
  max: 65536,
});

/** Recent tokens kept by policies that observe no window; published code keeps none for its own sake. */
export const RECENT = parameter({ ...WINDOW, oursOnly: true });

/** Positions to come that queries are expected at. 512: kvpress' choice. */
export const FUTURE = parameter({ name: "future", type: "integer", default: 512, min: 1, max: 65536 });

const CONTEXT = "context", CALIBRATED = "calibrated";

/** Whose queries' statistics: the context's own, those calibrated for the model, or those of a file that is named. */
export const STATISTICS = parameter({ name: "statistics", type: "text", default: CONTEXT });

/** What is needed for these values. */
export function statisticsNeed(
  { sinks, future, statistics }: { readonly sinks: number; readonly future: number; readonly statistics: string },
): { readonly need: QueryStatisticsNeed; readonly file?: PolicyFileNeed } {
  if (statistics === CONTEXT) return { need: { sinks, future } };
  const need = { sinks, future, calibrated: true };
  return statistics === CALIBRATED ? { need } : { need, file: { kind: "statistics", name: statistics } };
}

/** Pooling kernel over positions. */
export const KERNEL = parameter({
  name: "kernel",
  type: "integer",
  default: 5,
  min: 1,
  max: 255,
});
