/**
 * This tree against another checkout of the project: whole prefills and decode steps of SmolLM2 on our kernels alone, one
 * thread, the two taking turns in each round. What a change costs or gains, on a machine whose speed drifts.
 *
 *     deno task bench trees --other FOLDER [--context 4096] [--prefill 2048] [--rounds 7] [--steps 24]
 */
import { resolve } from "node:path";
import process from "node:process";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { decodeRounds, Engine, option, palisade, printHeader, someIds, started, type Taken } from "./engines/engine.ts";

const POLICY = "layer-defensive";
const ENGINE = "bench/engines/palisade.ts";

function there(folder: string, model: string, keep: number): Engine {
  return new Engine(`other, keep ${keep}`, process.execPath, [
    ...["run", "-A", resolve(folder, ENGINE)],
    ...[model, POLICY, String(keep)],
  ]);
}

const middle = (values: readonly number[]) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** One line: medians of both, and the median, least and greatest of the rounds' ratios, here over there. */
function line(what: string, here: readonly Taken[], other: readonly Taken[]): string {
  const ratios = here.map((taken, i) => taken.processor / other[i].processor);
  const walls = here.map((taken, i) => taken.wall / other[i].wall);
  const of = (list: readonly number[]) =>
    `${middle(list).toFixed(3)} (${Math.min(...list).toFixed(2)} to ${Math.max(...list).toFixed(2)})`;
  const ms = (taken: readonly Taken[]) => middle(taken.map(({ processor }) => processor)).toFixed(1);
  return `| ${what} | ${ms(here)} | ${ms(other)} | ${of(ratios)} | ${of(walls)} |`;
}

async function main(): Promise<void> {
  const folder = option("other", "");
  if (folder === "") throw new RangeError("--other wants the folder of another checkout");
  const path = await pullModel("smollm2-135m", await currentRuntime());
  const [context, length, rounds, steps] = [["context", "4096"], ["prefill", "2048"], ["rounds", "7"], ["steps", "24"]]
    .map(([name, otherwise]) => Number(option(name, otherwise)));
  const ids = await someIds(path, Math.max(context, length));
  await printHeader("trees");
  console.log("| what | processor ms here | there | here / there | wall |\n| --- | --- | --- | --- | --- |");
  for (const keep of [0.2, 1]) {
    const engines = await started([palisade(path, POLICY, keep), there(folder, path, keep)]);
    await Promise.all(engines.map((engine) => engine.ask({ what: "prefill", ids: ids.slice(0, context - 1) })));
    const times = await decodeRounds(engines, ids[context - 1], rounds, steps);
    const [here, other] = engines.map((engine) => times.get(engine)!);
    console.log(line(`decode, ${context} tokens, keep ${keep * 100} %`, here, other));
    if (keep === 0.2) console.log(await prefills(engines, ids.slice(0, length), rounds));
    for (const engine of engines) engine.stop();
  }
}

async function prefills(engines: readonly Engine[], ids: readonly number[], rounds: number): Promise<string> {
  const times = engines.map(() => [] as Taken[]);
  for (let round = 0; round < rounds; round++) {
    for (const [i, engine] of engines.entries()) times[i].push(await engine.ask({ what: "prefill", ids }));
  }
  return line(`prefill, ${ids.length} tokens, eviction included`, times[0], times[1]);
}

await main();
