/** What of a planned reading goes into a snapshot's identity. */
import { type Keep, parseKeep } from "../../core/select/budget.ts";
import type { Policy, PolicyFileKind } from "../../core/policy/policy.ts";
import type { DecodePlan } from "../decode/answer.ts";
import { DEFAULTS } from "../defaults.ts";
import type { Gate } from "../gate/file.ts";
import type { Model } from "../model.ts";
import { type FileContents, POLICY_FILES } from "../policy_files/policy_files.ts";
import { chunksOf, knownGate, type SourceOptions } from "../read/policy_inputs.ts";
import type { Reading } from "../read/reading.ts";
import { taggedHash } from "./hash.ts";
import { budgetWords, KNOWN, type ReadingFacts } from "./identity.ts";

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
  options: SourceOptions,
  predict: boolean,
): Promise<Record<string, string>> {
  const { gate, softTokens } = options;
  const hashes: Record<string, string> = {};
  const note = <K extends PolicyFileKind>(kind: K, content: FileContents[K]) => {
    hashes[kind] = taggedHash([[kind, POLICY_FILES[kind].bytes(content)]]);
  };
  if (needs.gate || predict) hashes.gate = gateHash("gate", gate ?? await model.gate({ target: needs.gate || true }));
  if (needs.selfGate) hashes[KNOWN] = knownHash(await knownGate(model, options));
  if (needs.foresight) note("chunks", await chunksOf(model, needs));
  const { kind, name, headScores } = needs.file ?? {};
  if (softTokens && needs.softTokens) note("soft-tokens", softTokens);
  else if (kind === "soft-tokens") note(kind, await model.softTokens(name!));
  // Without them nothing could have been read by the policy.
  else if (headScores) note("head-scores", headScores);
  return hashes;
}

/** Of what a gate that fits itself begins with; its weights as they are, which its file rounds. */
function knownHash(gate: Gate | undefined): string {
  return gate ? gateHash(KNOWN, gate) : "nothing";
}

function gateHash(kind: string, gate: Gate): string {
  const { weights } = gate, exact = new Uint8Array(weights.buffer, weights.byteOffset, weights.byteLength);
  return taggedHash([[kind, POLICY_FILES.gate.bytes(gate)], ["weights", exact]]);
}
