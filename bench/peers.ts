/**
 * Any GGUF against llama.cpp on the same file: prefill, decoding with all and with a fifth of the cache, resident memory
 * and loading. Every engine in a process of its own, taking turns in each round, on as many threads each. llama.cpp is a
 * dev tool outside the package: `npm install --ignore-scripts --prefix bench/peers`.
 *
 *     deno task bench peers --model FILE [--context 512,4096] [--threads 1,2] [--rounds 3] [--steps 16] [--node PROGRAM]
 *
 * `--node`: palisade in that Node, too. Run in Node itself, by its path, it measures that one alone.
 */
import { basename } from "node:path";
import { benchPath, Engine, median, option, palisade, printHeader, started, type Taken } from "./engines/engine.ts";

const POLICY = "layer-defensive";
const NODE = option("node", "") || undefined;
const list = (name: string, otherwise: string) => option(name, otherwise).split(",").map(Number);

/** Token ids of no text: speed does not depend on them. */
function someNumbers(count: number): number[] {
  return Array.from({ length: count }, (_, i) => (i * 7919 + 13) % 30000 + 100);
}

interface Row {
  readonly engine: Engine;
  readonly prefill: Taken[];
  readonly decode: Taken[];
}

async function measure(path: string, context: number, threads: number): Promise<void> {
  const rounds = Number(option("rounds", "3")), steps = Number(option("steps", "16")), ids = someNumbers(context - 1);
  const room = String(context + steps + 8);
  const engines = await started([
    palisade(path, POLICY, 0.2, threads),
    palisade(path, POLICY, 1, threads),
    ...(NODE ? [palisade(path, POLICY, 0.2, threads, NODE), palisade(path, POLICY, 1, threads, NODE)] : []),
    new Engine("llama.cpp, full cache", "node", [benchPath("peers/llama.mjs"), path, String(threads), room]),
  ]);
  const rows = engines.map((engine): Row => ({ engine, prefill: [], decode: [] }));
  for (const { engine } of rows) await engine.ask({ what: "prefill", ids: ids.slice(0, 256) });
  // Long prefills once: they are many chunks.
  for (let round = 0; round < (context > 1024 ? 1 : rounds); round++) {
    for (const { engine, prefill } of rows) prefill.push(await engine.ask({ what: "prefill", ids }));
  }
  for (let round = -1; round < rounds; round++) {
    for (const { engine, decode } of rows) {
      const taken = await engine.ask({ what: "decode", id: 100, steps });
      if (round >= 0) decode.push(taken);
    }
  }
  print(rows, context, threads);
  for (const { engine } of rows) engine.stop();
}

function print(rows: readonly Row[], context: number, threads: number): void {
  const peer = rows.at(-1)!;
  const of = (taken: readonly Taken[], key: keyof Taken) => median(taken.map((each) => each[key]));
  const share = (one: readonly Taken[], other: readonly Taken[], key: keyof Taken) =>
    median(one.map((each, i) => each[key] / other[i][key])).toFixed(2);
  for (const { engine, prefill, decode } of rows) {
    const speed = [prefill, decode].map((taken) =>
      `${of(taken, "wall").toFixed(1)} | ${of(taken, "processor").toFixed(1)}`
    );
    const against = [
      share(peer.prefill, prefill, "wall"),
      share(peer.prefill, prefill, "processor"),
      share(decode, peer.decode, "wall"),
      share(decode, peer.decode, "processor"),
    ];
    const memory = `${(engine.rss / 1e6).toFixed(0)} | ${engine.loadMs.toFixed(0)}`;
    console.log(
      `| ${context}, ${threads} | ${engine.name} | ${speed.join(" | ")} | ${against.join(" | ")} | ${memory} |`,
    );
  }
}

async function main(): Promise<void> {
  const path = option("model", "");
  if (path === "") throw new RangeError("--model wants a GGUF");
  await printHeader(`peers on ${basename(path)}`);
  console.log(
    "| tokens, threads | engine | prefill ms | processor | decode ms | processor | prefill speed over llama.cpp's | by processor | decode time over llama.cpp's | by processor | resident MB | load ms |",
  );
  console.log(`| ${"--- | ".repeat(12)}`.trim());
  for (const threads of list("threads", "1,2")) {
    for (const context of list("context", "512,4096")) await measure(path, context, threads);
  }
}

await main();
