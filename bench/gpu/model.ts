/** Reading and answering of a whole model, and what its time goes to. */
import { GpuDevice, type Stage } from "../../gpu/device.ts";
import { widthsOf } from "../../core/dense/operations.ts";
import { inputsOf } from "../../model/architecture.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { ANSWER_TOKENS, type Ceilings, EMULATED_TOKENS, type Report, seconds } from "./measure.ts";

const SENTENCE = "The keeper counted seventeen stakes before the gate was shut. ";

export interface ModelPlan {
  readonly tokens: readonly number[];
  readonly emulated: boolean;
  /** Also says which stages a token and a chunk take, and how long each does. */
  readonly profile: boolean;
}

export async function model(path: string, ceilings: Ceilings, plan: ModelPlan, report: Report): Promise<void> {
  await using loaded = await loadModel(path, await currentRuntime(), { backend: "webgpu" });
  const { weightBytes } = loaded.dense;
  report({ what: "weights", value: weightBytes / 1e6, unit: "MB" });
  for (const tokens of plan.emulated ? [EMULATED_TOKENS] : plan.tokens) {
    const whole = await read(loaded, tokens, "100%", ceilings, plan, report);
    const part = await read(loaded, tokens, "20%", ceilings, plan, report);
    const value = 100 * (part - whole) / whole;
    report({ what: `eviction at ${tokens} tokens`, value, unit: "% of reading" });
  }
  if (plan.profile) await profile(loaded, plan, report);
}

/** Seconds that the reading took. */
async function read(
  loaded: Model,
  tokens: number,
  keep: string,
  { copy, multiplyAdd }: Ceilings,
  { emulated }: ModelPlan,
  report: Report,
): Promise<number> {
  const text = textOf(loaded, tokens), options = { policy: "layer-defensive", keep };
  // Once before, so that every stage is compiled.
  if (!emulated) {
    using warm = await openContext(loaded, text, options);
    await warm.ask("What was counted?", { maxTokens: 16, allowLoops: true });
  }
  const start = performance.now();
  using context = await openContext(loaded, text, options);
  const time = (performance.now() - start) / 1000, at = `${context.tokens} tokens, ${keep} kept`;
  report({ what: `read ${at}`, value: context.tokens / time, unit: "tokens/s" });
  // Two operations a weight, the embeddings' only at the end.
  const { config } = loaded.dense, rate = 2 * weightsOf(loaded) * context.tokens;
  const pairs = context.tokens ** 2 / 2 * config.layers * config.heads * config.headDim;
  report({
    what: `read ${at}, its products`,
    value: (rate + 4 * pairs) / time / 1e9,
    unit: "GFLOP/s",
    ceiling: multiplyAdd,
  });
  const { ms } = await context.ask("What was counted?", { maxTokens: emulated ? 2 : ANSWER_TOKENS, allowLoops: true });
  report({ what: `answer ${at}`, value: 1000 / ms.decodePerToken, unit: "tokens/s" });
  const value = loaded.dense.weightBytes / ms.decodePerToken / 1e6;
  report({ what: `answer ${at}, its weights`, value, unit: "GB/s", ceiling: copy });
  return time;
}

function textOf({ tokenizer }: Model, tokens: number): string {
  const each = tokenizer.encode(SENTENCE).length;
  return SENTENCE.repeat(Math.max(1, Math.floor(tokens / each)));
}

/** Weights of the layers. */
function weightsOf({ dense: { config } }: Model): number {
  return config.decoder.layers.slice(0, config.layers).flatMap(({ project, finish }) =>
    [project, finish].flatMap((list) => {
      const widths = widthsOf(list, inputsOf(config));
      return list.map((each) => each.op === "multiply" ? each.rows * widths.get(each.from)! : 0);
    })
  ).reduce((sum, each) => sum + each, 0);
}

/** Each stage of a question and two tokens by itself, one after another as often as there are such. */
async function profile(loaded: Model, { emulated }: ModelPlan, report: Report): Promise<void> {
  // What a stage that is run again reads must still be there.
  const { destroy } = GPUBuffer.prototype;
  GPUBuffer.prototype.destroy = () => {};
  try {
    await profileKept(loaded, emulated, report);
  } finally {
    GPUBuffer.prototype.destroy = destroy;
  }
}

/** The same, while no buffer goes. */
async function profileKept(loaded: Model, emulated: boolean, report: Report): Promise<void> {
  using context = await openContext(loaded, textOf(loaded, emulated ? EMULATED_TOKENS : 4000), { policy: "full" });
  const ask = async () => void await context.ask("What?", { maxTokens: 2, allowLoops: true });
  const taken = await capture(async () => {
    using _ = await openContext(loaded, textOf(loaded, emulated ? EMULATED_TOKENS : 4000), {
      policy: "layer-defensive",
      keep: "20%",
    });
  });
  await replay(taken, "reading", report);
  await ask();
  await replay(await capture(ask), "asking", report);
}

type Pass = readonly [gpu: GpuDevice, ...Parameters<GpuDevice["run"]>];

/** The stages that `work` runs. */
async function capture(work: () => Promise<void>): Promise<Pass[]> {
  const taken: Pass[] = [], { run } = GpuDevice.prototype;
  GpuDevice.prototype.run = function (stage, call) {
    taken.push([this, stage, call]);
    run.call(this, stage, call);
  };
  try {
    await work();
  } finally {
    GpuDevice.prototype.run = run;
  }
  return taken;
}

/** What they write then means nothing: nothing is asked afterwards. */
async function replay(taken: readonly Pass[], what: string, report: Report) {
  const kinds = new Map<string, Pass[]>();
  for (const pass of taken) {
    const [, stage, { groups, params }] = pass, key = `${nameOf(stage)} ${groups.join("×")}, ${params[0]}`;
    kinds.set(key, [...kinds.get(key) ?? [], pass]);
  }
  for (const [key, passes] of kinds) {
    const [[gpu]] = passes;
    const time = await seconds(gpu, (i) => {
      const [, stage, call] = passes[i % passes.length];
      gpu.run(stage, call);
    });
    report({ what: `${what}: ${passes.length} × ${key}`, value: 1e6 * time, unit: "µs each" });
  }
}

function nameOf({ name }: Stage): string {
  return name.replace(/^.*\//, "").replace(".wgsl", "");
}
