import { parentPort } from "node:worker_threads";
import { PalisadeError } from "../../core/errors.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { CountingSource } from "./counting_source.ts";

export interface OpenRequest {
  readonly bytes: Uint8Array;
  /** Length of the file when zeros follow `bytes`. */
  readonly size?: number;
  /** Eight-byte integers further on. */
  readonly integers?: readonly (readonly [offset: number, value: number])[];
  readonly windowBytes?: number;
  /** Never answers; to test the watchdog. */
  readonly hang?: boolean;
}

/** What happened, and what was asked of the source. */
export interface Outcome {
  /** `ok`, or the error's code; `other` for anything that is no PalisadeError. */
  readonly code: string;
  readonly kind: string;
  readonly where: string;
  readonly message: string;
  readonly reads: number;
  readonly totalBytes: number;
  readonly largestRead: number;
  readonly closed: boolean;
}

async function attempt({ bytes, size, integers, windowBytes }: OpenRequest): Promise<Outcome> {
  const source = new CountingSource(bytes, size, integers);
  const outcome = await openGguf(source, { windowBytes }).then(
    () => ({ code: "ok", kind: "", where: "", message: "" }),
    (error: unknown) => {
      if (error instanceof PalisadeError) {
        return { code: error.code, kind: error.kind as string, where: error.where, message: error.message };
      }
      return { code: "other", kind: "", where: "", message: error instanceof Error ? error.stack ?? "" : `${error}` };
    },
  );
  const { reads, totalBytes, largestRead, closed } = source;
  return { ...outcome, reads, totalBytes, largestRead, closed };
}

parentPort!.on("message", async (request: OpenRequest) => {
  while (request.hang);
  parentPort!.postMessage(await attempt(request));
});
