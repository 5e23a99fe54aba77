/** What of a planned reading goes into a snapshot's identity. */
import { type Keep, parseKeep } from "../../core/select/budget.ts";
import type { Policy, PolicyFileKind } from "../../core/policy/policy.ts";
import type { DecodePlan } from "../decode/answer.ts";
import { DEFAULTS } from "../defaults.ts";
import type { Model } from "../model.ts";
import { type FileContents, POLICY_FILES } from "../policy_files/policy_files.ts";
import { chunksOf, type SourceOptions } from "../read/policy_inputs.ts";
import type { Reading } from "../read/reading.ts";
import { taggedHash } from "./hash.ts";
import { budgetWords, type ReadingFacts } from "./identity.ts";

interface Asked extends SourceOptions {
  readonly keep?: Keep | string;
  readonly bytes?: string;
  readonly risk?: number;
  readonly riskWorst?: number;
}

/** @throws PalisadeErrors of the files that scores come from. */
export async function factsOf(
  model: Model,
  reading: Reading,
  { positions, maxCache }: DecodePlan,
  options: Asked,
): Promise<ReadingFacts> {
  const { policy, keepCapped, leastKept, cacheType = DEFAULTS.cacheType } = reading;
  const keep = leastKept ? { tokens: reading.budget.perHead } : options.keep ?? DEFAULTS.keep;
  const closes = "realign" in reading && reading.realign ? ", closing up" : "";
  const refit = "refit" in reading && reading.refit ? `, refit ${reading.refit}` : "";
  return {
    ...{ policy, cacheType, positions },
    files: await fileHashes(model, policy, options, maxCache?.rule.predicted ?? false),
    budget: budgetWords(
      { ...options, keep: typeof keep === "string" ? parseKeep(keep) : keep },
      keepCapped ? maxCache?.tokens : undefined,
    ),
    way: `${reading.way}${closes}${refit}`,
  };
}

/** SHA-256 of what counts in each file that the policy's scores come from. */
async function fileHashes(
  model: Model,
  { needs }: Policy,
  { gate, softTokens }: SourceOptions,
  predict: boolean,
): Promise<Record<string, string>> {
  const hashes: Record<string, string> = {};
  const note = <K extends PolicyFileKind>(kind: K, content: FileContents[K]) => {
    hashes[kind] = taggedHash([[kind, POLICY_FILES[kind].bytes(content)]]);
  };
  if (needs.gate || predict) note("gate", gate ?? await model.gate({ target: needs.gate || true }));
  if (needs.foresight) note("chunks", await chunksOf(model, needs));
  const { kind, name } = needs.file ?? {};
  if (softTokens && needs.softTokens) note("soft-tokens", softTokens);
  else if (kind === "soft-tokens") note(kind, await model.softTokens(name!));
  else if (kind === "head-scores") note(kind, await POLICY_FILES[kind].read(name!, model.runtime));
  return hashes;
}
