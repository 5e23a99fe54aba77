/**
 * What collector and workers say to each other, and under which names it lies on the server.
 *
 * A *sweep* is one model and everything its cells depend on but the list of samples: its manifest, whose hash is its
 * id. A *job* is one group of cells that share a prefill. A *delivery* is what a worker sends back. One process, the
 * *collector*, owns the results file; any number of *workers* compute.
 */
import type { CacheType } from "../../core/cache/entry_type.ts";
import { PalisadeError, type Where } from "../../core/errors.ts";
import type { Said } from "../../core/options.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { CellGroup } from "../sweep/plan.ts";
import { type CellInputs, hashOf, type Protocol, type ResultLine } from "../results/results.ts";

/** Raised when manifest, job or delivery change. */
export const QUEUE_PROTOCOL = 1;

/** What all keys on the server begin with. */
export const KEY_PREFIX = "palisade";

/** Hash of the open sweeps: id → JSON of {@link SweepNotice}. */
export const SWEEPS_KEY = `${KEY_PREFIX}:sweeps`;

export interface SweepManifest {
  readonly protocol: number;
  /** Version of palisade: it is part of every cell's id. */
  readonly palisade: string;
  /** `name` is for people; the hash decides. */
  readonly model: { readonly name: string; readonly sha256: string };
  /** Lists as typed. */
  readonly policies: string;
  readonly keep: string;
  readonly tasks: readonly string[];
  readonly seed: number;
  readonly reading: Protocol;
  /** How the cache stores keys and values; missing: f32. */
  readonly cacheType?: CacheType;
  readonly beyondTrained: boolean;
  readonly haystack: { readonly file?: string; readonly sha256: string };
  /** Texts of the files that tasks and haystack name: workers need no copies of them. */
  readonly files: Readonly<Record<string, string>>;
}

/** What a worker needs to know to choose a sweep. */
export interface SweepNotice {
  readonly model: SweepManifest["model"];
  /** ISO 8601. */
  readonly since: string;
}

export interface GroupJob {
  readonly task: string;
  /** Hash of the task's file, for tasks that have one: two may have one name. */
  readonly source?: string;
  readonly length: number | null;
  readonly sample: number;
  /** Ids of its cells that the results file holds. */
  readonly done: readonly string[];
}

/** Ids of cells whose lines are on the server already, kept as the job's progress. */
export interface JobProgress {
  readonly sent: readonly string[];
}

export type Delivery =
  | { readonly kind: "line"; readonly line: ResultLine }
  /** The group is computed; `cells` are the ids of all its cells. */
  | { readonly kind: "end"; readonly job: string; readonly cells: readonly string[]; readonly worker: string }
  /** A worker won't serve this sweep. */
  | { readonly kind: "refusal"; readonly worker: string; readonly reason: string };

/** What a sweep's lines were computed with; the first worker decides for all. */
export type Engines = Omit<CellInputs["engines"], "palisade">;

/** 16 hexadecimal digits; the same for the same manifest, whatever the model's file is called. */
export function sweepIdOf(manifest: SweepManifest, runtime: Pick<Runtime, "sha256">): string {
  return hashOf({ ...manifest, model: manifest.model.sha256 }, runtime).slice(0, 16);
}

/** The same for the same group, so that a group is queued once. */
export function jobIdOf(group: CellGroup, runtime: Pick<Runtime, "sha256">): string {
  const { task: { name, source }, length, sample } = group;
  return `g${hashOf({ task: name, ...(source && { source }), length, sample }, runtime).slice(0, 24)}`;
}

/** Names on the server: two BullMQ queues and plain keys. */
export function namesOf(sweep: string): Record<"jobs" | "results" | "manifest" | "engines" | "collector", string> {
  const key = (name: string) => `${KEY_PREFIX}:${sweep}:${name}`;
  return {
    jobs: sweep,
    results: `${sweep}-results`,
    manifest: key("manifest"),
    engines: key("engines"),
    collector: key("collector"),
  };
}

/** Why a worker can't serve a sweep, or nothing. */
export function refusalOf(
  manifest: SweepManifest,
  mine: { readonly palisade: string; readonly sha256: string },
): string | undefined {
  if (manifest.protocol !== QUEUE_PROTOCOL) {
    return `its queue speaks protocol ${manifest.protocol}, this worker ${QUEUE_PROTOCOL}: install the same palisade`;
  }
  if (manifest.palisade !== mine.palisade) {
    return `it wants palisade ${manifest.palisade}, this worker is ${mine.palisade}: install the same version`;
  }
  const { name, sha256 } = manifest.model;
  if (sha256 === mine.sha256) return undefined;
  return `it wants ${name} (SHA-256 ${sha256.slice(0, 12)}…), this worker's model file has ${
    mine.sha256.slice(0, 12)
  }…`;
}

export function usageError(code: string, message: string | Said, where: Where): PalisadeError {
  return new PalisadeError("usage", code, message, { where });
}
