/** A model as cells are computed with: the same whoever schedules them, so that cells from everywhere can be compared. */
import type { Subject } from "../../evaluate/sweep/sweep.ts";
import { loadModel } from "../../model/model.ts";
import type { Expected } from "../../model/needed_memory.ts";
import { modelHash } from "../../model/store/identity.ts";
import { LINE } from "../../model/text/frames.ts";
import { type EngineOptions, tellsMemory } from "../engine.ts";
import type { Io } from "../io.ts";
import { obtainModel } from "../obtain.ts";
import type { Progress } from "../print/progress.ts";
import { VERSION } from "../../runtime/version.ts";

/** A model's file, and its hash: the model's identity. */
export interface ModelFile {
  readonly name: string;
  readonly path: string;
  readonly sha256: string;
}

export type SubjectOptions = Omit<EngineOptions, "model"> & { readonly gate?: string };
export type OpenSubject = Subject & AsyncDisposable;

/** Finds or fetches a model. PalisadeErrors as `obtainModel`. */
export async function openModelFile(
  name: string,
  options: SubjectOptions,
  io: Io,
  progress: Progress,
): Promise<ModelFile> {
  const path = await obtainModel(name, io, progress, options);
  return { name, path, sha256: await modelHash(path, io.runtime, io) };
}

/** Starts it, for cells of `expected` at the most. PalisadeErrors as `loadModel`. */
export async function openSubject(
  { name, path, sha256 }: ModelFile,
  options: SubjectOptions,
  io: Io,
  progress: Progress,
  expected: Expected,
): Promise<OpenSubject> {
  const model = await loadModel(path, io.runtime, {
    backend: options.backend,
    dense: options.dense,
    // Cells made before, and elsewhere, stay comparable.
    oneEngine: true,
    frame: LINE,
    threads: options.threads,
    gate: options.gate,
    signal: io.signal,
    expected: () => ({ ...expected, positions: "trained" }),
    ...tellsMemory(`Starting ${name}`, options, io, progress),
  });
  progress.clear();
  return {
    model,
    runtime: io.runtime,
    sha256,
    palisade: VERSION,
    [Symbol.asyncDispose]: () => model[Symbol.asyncDispose](),
  };
}
