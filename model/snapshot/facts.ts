/** What of a planned reading goes into a snapshot's identity. */
import { type Keep, parseKeep } from "../../core/select/budget.ts";
import type { Needs, PolicyFileKind } from "../../core/policy/policy.ts";
import type { DecodePlan } from "../decode/answer.ts";
import { DEFAULTS } from "../defaults.ts";
import type { Gate } from "../gate/file.ts";
import type { Model } from "../model.ts";
import { type FileContents, POLICY_FILES } from "../policy_files/policy_files.ts";
import { chunksOf, knownGate, softTokensOf, type SourceOptions, statisticsOf } from "../read/policy_inputs.ts";
import type { Reading } from "../read/reading.ts";
import { taggedHash } from "./hash.ts";
import { isCalibrated } from "../statistics/needed.ts";
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
  const { policy, keepCapped, cacheType = DEFAULTS.cacheType } = reading;
  const closes = "realign" in reading && reading.realign ? ", closing up" : "";
  const refit = "refit" in reading && reading.refit ? `, refit ${reading.refit}` : "";
  return {
    ...{ policy, cacheType, positions },
    files: await fileHashes({ model, needs: policy.needs, options, predict: maxCache?.rule.predicted ?? false }),
    budget: budgetWords(
      { ...options, keep: keepOf(reading, options) },
      keepCapped ? maxCache?.tokens : undefined,
    ),
    way: `${reading.way}${closes}${refit}`,
  };
}

/** What was asked to stay, or what the default comes to. */
export function keepOf({ least }: Reading, { keep = DEFAULTS.keep }: Pick<Asked, "keep">): Keep {
  return least ?? (typeof keep === "string" ? parseKeep(keep) : keep);
}

/** A reading, as far as its files are concerned. */
interface FileUse {
  readonly model: Model;
  readonly needs: Needs;
  readonly options: SourceOptions;
  /** The gate's scores of what is kept are wanted. */
  readonly predict: boolean;
}

/** The hash of what counts in the file of each kind, where a reading has one: a kind that is missing here doesn't compile. */
const FILE_HASHES: { readonly [kind in PolicyFileKind]: (use: FileUse) => Promise<string | undefined> } = {
  async gate({ model, needs, options: { gate }, predict }) {
    if (!needs.gate && !predict) return undefined;
    return gateHash("gate", gate ?? await model.gate({ target: needs.gate || true }));
  },
  async chunks({ model, needs }) {
    return needs.foresight && contentHash("chunks", await chunksOf(model, needs));
  },
  async statistics({ model, needs }) {
    return isCalibrated(needs) ? contentHash("statistics", await statisticsOf(model, needs)) : undefined;
  },
  async "soft-tokens"({ model, needs, options: { softTokens } }) {
    return needs.softTokens && contentHash("soft-tokens", softTokens ?? await softTokensOf(model, needs));
  },
  // Without them nothing could have been read by the policy.
  "head-scores"({ needs: { file } }) {
    return Promise.resolve(file?.headScores && contentHash("head-scores", file.headScores));
  },
};

/** SHA-256 of what counts in each file that the policy's scores come from, and of what `self-gate` begins with. */
async function fileHashes(use: FileUse): Promise<Record<string, string>> {
  const hashes: Record<string, string> = {};
  for (const kind of Object.keys(FILE_HASHES) as PolicyFileKind[]) {
    const hash = await FILE_HASHES[kind](use);
    if (hash !== undefined) hashes[kind] = hash;
  }
  if (use.needs.selfGate) hashes[KNOWN] = knownHash(await knownGate(use.model, use.options));
  return hashes;
}

function contentHash<K extends PolicyFileKind>(kind: K, content: FileContents[K]): string {
  return taggedHash([[kind, POLICY_FILES[kind].bytes(content)]]);
}

/** Of what a gate that fits itself begins with. */
function knownHash(gate: Gate | undefined): string {
  return gate ? gateHash(KNOWN, gate) : "nothing";
}

/** With the weights as they are, which a gate's file rounds. */
function gateHash(kind: string, gate: Gate): string {
  const bytesOf = ({ weights }: Pick<Gate, "weights">) =>
    new Uint8Array(weights.buffer, weights.byteOffset, weights.byteLength);
  return taggedHash([
    [kind, POLICY_FILES.gate.bytes(gate)],
    ["weights", bytesOf(gate)],
    ...(gate.keyed ? [["keyed", bytesOf(gate.keyed)] as const] : []),
  ]);
}
