/** Everything on this machine that was fitted for one model: what policies find by themselves. */
import { PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { findChunks } from "../foresight/find.ts";
import { findGate, type GateSubject } from "../gate/find.ts";
import { findLearned } from "../gate/learned.ts";
import { findSoftTokens } from "./soft_tokens.ts";
import { findStatistics } from "../statistics/find.ts";

/** A file that a policy would take for the model. */
export interface FittedFile {
  /** Policies that go by it. */
  readonly policies: readonly string[];
  /** Where the text came from that it was fitted on; of soft tokens the words of who trained them. */
  readonly texts: readonly string[];
  /** Tokens of these, where that is known. */
  readonly tokens?: number;
}

interface Found {
  readonly info:
    | { readonly calibration: { readonly texts: readonly string[]; readonly tokens: number } }
    | { readonly trained: string };
}

/**
 * What is fitted for the model, gates first.
 * @throws PalisadeError `gate.several` and whatever else says that one is there and can't be used.
 */
export async function fittedFor(model: GateSubject, runtime: Runtime): Promise<FittedFile[]> {
  const kinds: [string[], () => Promise<Found | undefined>][] = [
    [["gate"], () => findGate(model, runtime)],
    [["self-gate"], () => findLearned({ ...model, runtime })],
    [["kvzap"], () => findGate(model, runtime, undefined, "kvzip-plus")],
    [["judge-q"], () => findSoftTokens(model, runtime)],
    [["fasa"], () => findChunks(model, runtime)],
    [["expected-attention", "qfilter", "triattention"], () => findStatistics(model, runtime)],
  ];
  const fitted: FittedFile[] = [];
  for (const [policies, find] of kinds) {
    const found = await orNone(find());
    if (found) fitted.push({ policies, ...onWhat(found) });
  }
  return fitted;
}

function onWhat({ info }: Found): Omit<FittedFile, "policies"> {
  if ("trained" in info) return { texts: [info.trained] };
  const { texts, tokens } = info.calibration;
  return { texts, tokens };
}

/** Undefined where there is none. */
async function orNone(finding: Promise<Found | undefined>): Promise<Found | undefined> {
  try {
    return await finding;
  } catch (error) {
    if (error instanceof PalisadeError && error.code.endsWith(".none")) return undefined;
    throw error;
  }
}
