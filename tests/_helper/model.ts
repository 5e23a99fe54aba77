/** The real model for tests, fetched by the product itself. */
import { pullModel } from "../../model/store/store.ts";
import { currentRuntime } from "../../runtime/mod.ts";

let path: Promise<string> | undefined;

/**
 * The path of SmolLM2-135M-Instruct Q4_1 in the normal cache folder, pulled when it is not there. Rejects when it
 * can't be had: tests on the real model fail then, they are never skipped.
 */
export function smollm2(): Promise<string> {
  path ??= currentRuntime().then((runtime) => pullModel("smollm2-135m", runtime));
  return path;
}
