/**
 * Files that policies name: one table of kinds, for the library, the command line and sweeps alike. `core/` reads none.
 *
 * A new kind is a line of {@link POLICY_FILES}, a name in `PolicyFileKind`, and a policy that needs it.
 */
import { PalisadeError } from "../../core/errors.ts";
import { parsePolicy, type PolicyText } from "../../core/policy/grammar.ts";
import type { HeadScores, Policy, PolicyFileKind, PolicyFileNeed, PolicyFiles } from "../../core/policy/policy.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { type Chunks, readChunks, writeChunks } from "../foresight/file.ts";
import { type Gate, writeGate } from "../gate/file.ts";
import { loadGate } from "../gate/find.ts";
import { readHeadScores } from "./head_scores.ts";
import { readStatistics, type Statistics, writeStatistics } from "../statistics/file.ts";
import { readSoftTokens, type SoftTokens } from "./soft_tokens.ts";

/** What each kind of file holds. */
export interface FileContents {
  readonly "head-scores": HeadScores;
  readonly "soft-tokens": SoftTokens;
  readonly gate: Gate;
  readonly chunks: Chunks;
  readonly statistics: Statistics;
}

interface FileKind<Content> {
  /** Reads and checks what can be checked without a model. Throws PalisadeErrors. */
  read(path: string, runtime: Runtime): Promise<Content>;
  /** What makes two of them the same to a policy. */
  bytes(content: Content): Uint8Array<ArrayBuffer>;
}

export const POLICY_FILES: { readonly [kind in PolicyFileKind]: FileKind<FileContents[kind]> } = {
  "head-scores": { read: readHeadScores, bytes: (scores) => new TextEncoder().encode(JSON.stringify(scores)) },
  "soft-tokens": { read: readSoftTokens, bytes: ({ embeddings }) => new Uint8Array(embeddings.slice().buffer) },
  gate: { read: loadGate, bytes: (gate) => writeGate(gate.info, gate) },
  chunks: { read: readChunks, bytes: writeChunks },
  statistics: { read: readStatistics, bytes: writeStatistics },
};

/** The first 16 digits of the SHA-256 of what counts in a file. */
export function fileHash<K extends PolicyFileKind>(kind: K, content: FileContents[K], runtime: Runtime): string {
  const hasher = runtime.sha256();
  hasher.update(POLICY_FILES[kind].bytes(content));
  return hasher.digest().slice(0, 16);
}

/** A policy with the file it names. */
export interface LoadedPolicy {
  readonly policy: Policy;
  /** {@link fileHash} of its file, when it names one. */
  readonly hash?: string;
}

/**
 * `resolvePolicy`, reading the file that the text names.
 * @throws PalisadeError `policy.*`, and as the kind's `read`, pointing at the character.
 */
export async function loadPolicy(text: string, runtime: Runtime): Promise<Policy> {
  return (await loadPolicyFile(text, runtime)).policy;
}

/** The same with the file's hash; throws as {@link loadPolicy}. */
export async function loadPolicyFile(text: string, runtime: Runtime): Promise<LoadedPolicy> {
  const policy = resolvePolicy(text), { file } = policy.needs;
  if (!file) return { policy };
  try {
    return await opened(policy, file, text, runtime);
  } catch (error) {
    throw error instanceof PalisadeError ? pointed(error, text, file) : error;
  }
}

async function opened(policy: Policy, { kind, name }: PolicyFileNeed, text: string, runtime: Runtime) {
  const read = async <K extends PolicyFileKind>(kind: K) => {
    const content = await POLICY_FILES[kind].read(name, runtime);
    return { content, hash: fileHash(kind, content, runtime) };
  };
  if (kind !== "head-scores") return { policy, hash: (await read(kind)).hash };
  const { content, hash } = await read(kind);
  const files: PolicyFiles = { headScores: new Map([[name, content]]) };
  return { policy: resolvePolicy(text, files), hash };
}

/** The error with the place in the text where the file is named. */
function pointed(error: PalisadeError, text: string, { name }: PolicyFileNeed): PalisadeError {
  return error.again({ more: ` (character ${placeOf(parsePolicy(text), name)} of "${text}")` });
}

function placeOf({ settings, scorer, at }: PolicyText, file: string): number {
  const setting = settings.find(({ name, value }) => (name === "file" || name === "statistics") && value === file);
  return setting?.at ?? (scorer ? placeOf(scorer, file) : at);
}
