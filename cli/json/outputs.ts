/**
 * What every command prints under `--json`, as types. `cli/schema/palisade.schema.json` is made from them (`deno task
 * docs`), so their comments are what readers of the schema see. Numbers that are not finite are printed as null.
 */
import type { ErrorKind } from "../../core/errors.ts";
import type { DescribedParameter } from "../../core/policy/about.ts";
import type { HiddenFact } from "../../evaluate/tasks/facts.ts";
import type { Comparison } from "../../evaluate/results/against.ts";
import type { ResultLine } from "../../evaluate/results/results.ts";
import type { Row } from "../../evaluate/results/summary.ts";
import type { CellRequest } from "../../evaluate/sweep/cell.ts";
import type { Shading } from "../../evaluate/report/shading.ts";
import type { Decision } from "../../model/dump/decisions.ts";
import type { NotFinite } from "../../model/dump/layers.ts";
import type { Coverage } from "../../model/gate/fit/calibrate.ts";
import type { ChunksInfo } from "../../model/foresight/file.ts";
import type { StatisticsInfo } from "../../model/statistics/file.ts";
import type { GateInfo } from "../../model/gate/file.ts";
import type { SoftTokensInfo } from "../../model/policy_files/soft_tokens.ts";
import type { Report } from "../../model/report.ts";
import type { Identity } from "../../model/snapshot/identity.ts";
import type { SavedState } from "../../model/snapshot/state.ts";
import type { Quality } from "../../model/soft_tokens/train.ts";
import type { NamedModel } from "../../model/store/registry.ts";
import type { Level } from "../settings/settle.ts";

/** What is printed on standard output, by the command. Of `evict` and `cell` it is one line of many. */
export interface Outputs {
  readonly ask: Report;
  readonly read: ReadText;
  readonly "snapshots list": readonly ListedSnapshot[];
  readonly "snapshots show": ShownSnapshot;
  readonly "snapshots verify": readonly VerifiedSnapshot[];
  readonly "snapshots rm": RemovedSnapshots;
  readonly "snapshots prune": RemovedSnapshots;
  readonly "snapshots key": WrittenKey;
  readonly demo: readonly DemoRun[];
  readonly show: ShownText;
  readonly evict: Decision | WrittenDecisions;
  readonly eval: Evaluated;
  readonly worker: Worked;
  readonly cell: ResultLine | RefusedCell;
  readonly report: ReportedResults | ComparedResults;
  readonly calibrate: FittedGate | TrainedTokens | FoundChunkFile | FoundStatisticsFile;
  readonly "models list": readonly ListedModel[];
  readonly "models pull": ModelPath;
  readonly "models path": ModelPath;
  readonly "models rm": RemovedModel;
  readonly policies: readonly ListedPolicy[] | readonly ListedRule[];
  readonly doctor: Examined;
  readonly "config show": ShownConfig;
  readonly completion: CompletionScript;
  readonly schema: JsonSchema;
}

/** What is written into files, a line of JSON each. */
export interface FileLines {
  /** A line of what `palisade eval --out` appends to. */
  readonly results: ResultLine;
}

/** All that the schema is made of. */
export interface Published {
  readonly outputs: Outputs;
  readonly lines: FileLines;
  readonly failure: Failure;
}

/** What every command prints instead when it fails, as a line of its own, behind what it had printed before. */
export interface Failure {
  readonly error: FailureText;
}

/** Why a command failed. */
export interface FailureText {
  /** Who has to act: exit codes 2, 3, 4 and 130; `failed`, exit code 1, is a fault of the program. */
  readonly kind: ErrorKind | "failed";
  /** Stable, dotted name of the failure: `file.missing`. */
  readonly code: string;
  /** The option, field or file concerned; empty when there is none. */
  readonly where: string;
  /** For people; it may change. */
  readonly message: string;
}

/** A text that was read, and the snapshot of it. */
export interface ReadText extends Omit<Report, "answer" | "answers"> {
  /** The snapshot's file, where one was named. */
  readonly file: string | null;
  /** Its name among those that are kept, where none was. */
  readonly name: string | null;
  /** Bytes of the snapshot. */
  readonly bytes: number;
}

/** A snapshot that is kept. What can't be read of it is null. */
export interface ListedSnapshot {
  readonly name: string;
  readonly bytes: number;
  /** When it was last used, milliseconds since 1970. */
  readonly used: number;
  readonly label: string | null;
  readonly model: string | null;
  /** Tokens of its text. */
  readonly tokens: number | null;
  readonly policy: string | null;
  readonly budget: string | null;
  readonly cacheType: string | null;
  /** Why its header can't be read. */
  readonly problem: string | null;
  /** It is sealed or cloaked, which is no damage. */
  readonly secret: boolean;
}

/** What a snapshot says of itself. */
export interface ShownSnapshot {
  readonly name: string;
  readonly bytes: number;
  /** Names of its parts. */
  readonly sections: readonly string[];
  readonly identity: Identity;
  readonly state: SavedState;
}

/** A snapshot whose bytes were read. */
export interface VerifiedSnapshot {
  readonly name: string;
  /** What is wrong with it; null when it is whole. */
  readonly problem: string | null;
  /** The part that is damaged. */
  readonly where: string | null;
}

/** Snapshots that are gone. */
export interface RemovedSnapshots {
  readonly removed: readonly {
    readonly name: string;
    readonly bytes: number;
  }[];
}

/** A new key. */
export interface WrittenKey {
  readonly file: string;
}

/** One policy on one text of the demo. */
export interface DemoRun {
  /** The text's title. */
  readonly text: string;
  readonly policy: string;
  /** Questions that were answered. */
  readonly hits: number;
  readonly facts: readonly AskedFact[];
  readonly report: Report;
}

/** A hidden fact, and what the model said of it. */
export interface AskedFact extends HiddenFact {
  readonly reply: string;
  readonly hit: boolean;
}

/** How many heads keep each token of a text. */
export interface ShownText {
  readonly model: string;
  readonly policy: string;
  /** As it was asked for, or as the default came to. */
  readonly keep: string;
  /** Entries of all layers that look at everything, and those of them that stayed. */
  readonly entries: number;
  readonly kept: number;
  readonly shading: Shading;
}

/** Decisions that `--write` put into a file. */
export interface WrittenDecisions {
  readonly file: string;
  readonly bytes: number;
  readonly layers: number;
  /** KV heads of all layers. */
  readonly heads: number;
  /** Entries that stay, of all heads. */
  readonly kept: number;
  /** Numbers that are not finite, by layer and part, where there are any. */
  readonly notFinite: readonly (NotFinite & { readonly layer: number })[];
}

/** What a sweep came to; its lines are in the results file. */
export interface Evaluated {
  /** The results file. */
  readonly out: string;
  /** Cells computed in this run, and cells that were there already. */
  readonly computed: number;
  readonly found: number;
  /** Of a queue: lines that came twice, and groups of cells given up. */
  readonly duplicates: number;
  readonly failed: number;
  /** Samples that can't be measured, and why. */
  readonly refused: readonly {
    readonly reason: string;
    readonly samples: readonly string[];
  }[];
  /** Milliseconds. */
  readonly ms: number;
}

/** What a worker did. */
export interface Worked {
  readonly worker: string;
  /** Groups of cells, and lines sent. */
  readonly groups: number;
  readonly lines: number;
}

/** A cell that can't be computed. */
export interface RefusedCell extends Failure {
  /** What was asked for, with defaults; the beginning of the line where it could not be read. */
  readonly cell: CellRequest | string;
}

/** What results say. */
export interface ReportedResults {
  readonly rows: readonly Row[];
  /** Tasks that the full cache solves. */
  readonly solved: readonly string[];
  /** Lines that the rows are made of. */
  readonly cells: number;
  /** Lines left out because the same sample was measured again later. */
  readonly superseded: number;
}

/** Policies beside one of them, on the samples that both have. */
export interface ComparedResults {
  readonly against: string;
  readonly rows: readonly Comparison[];
}

/** What was written, and what it took. */
interface Fitted {
  readonly out: string;
  readonly bytes: number;
  /** Milliseconds. */
  readonly ms: number;
}

/** A gate that was fitted. */
export interface FittedGate extends Fitted {
  readonly info: GateInfo;
  readonly coverage: readonly Coverage[];
}

/** Soft tokens that were trained. */
export interface TrainedTokens extends Fitted {
  readonly info: SoftTokensInfo;
  /** On texts held out: the words that training began with, and what came of them. */
  readonly before: Quality;
  readonly after: Quality;
}

/** Frequency chunks that were found for `fasa`. */
export interface FoundChunkFile {
  /** The file. */
  readonly out: string;
  readonly bytes: number;
  readonly ms: number;
  readonly info: ChunksInfo;
  /** Share of the `top` highest entries that each head's best quarter of the chunks finds, each alone, and all chunks. */
  readonly best: number;
  readonly mean: number;
  readonly top: number;
  /** The same of that quarter together, in a text that was not looked at; null without one. */
  readonly heldOut: number | null;
}

/** Statistics of queries that were found. */
export interface FoundStatisticsFile extends Fitted {
  readonly info: StatisticsInfo;
  /** How much each pair of a head's queries points the same way, 0 … 1, meaned. */
  readonly concentration: number;
}

/** A named or fetched model. */
export interface ListedModel extends NamedModel {
  readonly path: string;
  readonly present: boolean;
  /** Bytes on disk, 0 when absent. */
  readonly bytes: number;
  /** Whether the file's SHA-256, computed now, is the pinned one. */
  readonly verified: boolean;
}

/** Where a model's file is. */
export interface ModelPath {
  readonly name: string;
  readonly path: string;
}

/** A model whose file is gone. */
export interface RemovedModel {
  readonly name: string;
  /** Bytes freed; 0 when it was not here. */
  readonly bytes: number;
}

/** A policy of `--policy`. */
export interface ListedPolicy {
  readonly name: string;
  readonly summary: string;
  readonly paper: string;
  readonly source: string;
  readonly parameters: readonly DescribedParameter[];
  /** What `NAME@reference` does differently; null where there is none. */
  readonly reference: string | null;
}

/** A rule of `--step-policy`. */
export interface ListedRule {
  readonly name: string;
  readonly summary: string;
  readonly paper: string;
  /** What ours does otherwise. */
  readonly difference: string;
}

/** What this machine offers, or what a model file is. */
export interface Examined {
  /** Of palisade. */
  readonly version: string;
  readonly findings: readonly Finding[];
}

/** One finding. */
export interface Finding {
  readonly name: string;
  /** Whether the thing is there. */
  readonly ok: boolean;
  /** What it is, or why it isn't. */
  readonly text: string;
}

/** Settings, and who says so. */
export interface ShownConfig {
  readonly files: readonly { readonly level: "project" | "user"; readonly path: string }[];
  /** The folder where the user's file is looked for. */
  readonly userFolder: string;
  readonly settings: readonly ShownSetting[];
  /** Variables that look like ours and set nothing, and the nearest that would. */
  readonly unknownVariables: readonly { readonly name: string; readonly near: string | null }[];
}

/** One option of one command. */
export interface ShownSetting {
  readonly command: string;
  readonly option: string;
  /** What the command gets; null where nothing is said and there is no default. */
  readonly value: unknown;
  readonly from: Level;
  /** The variable, or the file and its key; null for defaults. */
  readonly place: string | null;
}

/** A script for a shell. */
export interface CompletionScript {
  readonly shell: string;
  readonly script: string;
}

/** A JSON Schema, draft 2020-12. */
export interface JsonSchema {
  readonly $schema: string;
  readonly $id: string;
  readonly title: string;
  readonly description: string;
  readonly [keyword: string]: unknown;
}
