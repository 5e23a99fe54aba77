/** Skips with a reason: the runner (`tools/test.ts`) prints them, and fails on any skip that has none. */
import { appendFileSync } from "node:fs";
import process from "node:process";

/**
 * Why a test can't run here. `file`: a model or golden file is missing, which is a FAILURE when CI=true.
 * `device`: this machine or runtime lacks something no test run can supply (a GPU, threads, an optional engine).
 */
export type SkipCause = "file" | "device";

/** One line of the file named by PALISADE_SKIPS. */
export interface SkipRecord {
  readonly name: string;
  readonly reason: string;
  readonly cause: SkipCause;
}

/**
 * Registers `name` as an ignored test and records why. `reason` is a sentence for people and must not be empty.
 * The default cause is the strict one.
 *
 * @example
 * if (adapter === null) skipped("webgpu decodeAttention() equals ts", "no WebGPU adapter", "device");
 * else Deno.test("webgpu decodeAttention() equals ts", …);
 */
export function skipped(name: string, reason: string, cause: SkipCause = "file"): void {
  if (reason.trim() === "") throw new TypeError(`skipped() wants a reason for "${name}"`);
  const record: SkipRecord = { name, reason, cause };
  const path = process.env["PALISADE_SKIPS"];
  if (path) appendFileSync(path, JSON.stringify(record) + "\n");
  else console.log(`skipped: ${name}: ${reason}`);
  Deno.test({ name, ignore: true, fn() {} });
}
