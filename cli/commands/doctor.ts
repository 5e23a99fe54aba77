/** `palisade doctor`: what is there, what isn't, and why. */
import { PalisadeError } from "../../core/errors.ts";
import { pickBackend } from "../../model/device.ts";
import { globalLayers } from "../../core/shape.ts";
import type { ModelConfig } from "../../model/config.ts";
import { neededBytes } from "../../model/dense/needed.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import type { GgufFile } from "../../model/file/gguf/reader.ts";
import type { TensorType } from "../../model/file/tensor_types.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { evictingHeads, hasFewHeads, leastShare } from "../../model/read/least_kept.ts";
import { openGgufFile } from "../../model/file/gguf/split.ts";
import { type ChatFrame, chatFrame } from "../../model/text/prompt.ts";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { obtainModel } from "../obtain.ts";
import { access, constants, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { probeNode } from "../../model/dense/ort/node.ts";
import { describeAuto } from "../../model/dense/pick.ts";
import { GATE_SUFFIX } from "../../model/gate/find.ts";
import { fittedFor } from "../../model/policy_files/fitted_for.ts";
import { modelHash } from "../../model/store/identity.ts";
import type { GpuInfo } from "../../gpu/open.ts";
import { judgeGpu } from "../../model/gpu_choice.ts";
import { autoThreads, startPool, whyOneThread } from "../../model/threads.ts";
import { cacheFolder, listModels } from "../../model/store/store.ts";
import { shortName } from "../../model/store/short_name.ts";
import { hasRelaxedSimd, hasSimd128 } from "../../runtime/features.ts";
import { packageData } from "../../runtime/package_data.ts";
import { formatBytes, formatCount, formatShare } from "../print/format.ts";
import { createProgress } from "../print/progress.ts";
import { command } from "../command.ts";
import { messageOf } from "../failure.ts";
import { EXIT, type Io } from "../io.ts";
import type { Finding } from "../json/outputs.ts";
import { JSON_SWITCH, printJson } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { VERSION } from "../../runtime/version.ts";
import { wideVectors } from "../../runtime/wide_vectors.ts";

const OPTIONS = {
  model: {
    value: "file",
    help: "instead: what a model file is, and what is odd in it",
    own: true,
    here: "models",
  },
  ...JSON_SWITCH,
} satisfies OptionTable;

/** `palisade doctor`. */
export const doctorCommand = command({
  options: OPTIONS,
  run: doctor,
});

/** Prints the findings; always exit code 0, a missing thing is a normal answer. */
async function doctor(options: Values<typeof OPTIONS>, io: Io): Promise<number> {
  const findings = options.model === undefined ? await examine(io) : await examineModel(options.model, io);
  if (options.json) {
    printJson(io, "doctor", { version: VERSION, findings });
    return EXIT.ok;
  }
  for (const { name, ok, text } of findings) io.out(`${ok ? "yes" : "no "}  ${name.padEnd(14)} ${text}\n`);
  return EXIT.ok;
}

/** What a model file is, what is fitted for it, what is odd in it and changes no answer, or why it can't be used. */
async function examineModel(nameOrPath: string, io: Io): Promise<Finding[]> {
  using progress = createProgress(false);
  try {
    const path = await obtainModel(nameOrPath, io, progress, { offline: true, quiet: true });
    await using file = await openGgufFile(path, io.runtime);
    const config = await configOf(file);
    const base = tokenizerOf(file.metadata);
    const frame = await chatFrame(file.metadata, base, io.runtime, { signal: io.signal });
    const tokenizer = base.endingAt(frame.ends);
    const ends = [...tokenizer.endIds].map((id) => `${tokenizer.decode([id])} (${id})`).join(", ");
    const notices = [...file.notices, ...tokenizer.notices];
    return [
      {
        name: "model",
        ok: true,
        text: `${shortName(path)} (${config.name}): ${config.architecture}, ${
          layersText(config)
        }, ${config.contextLength} tokens of context`,
      },
      ...keepFindings(config),
      { name: "weights", ok: true, text: typesText(file) },
      { name: "tokens", ok: true, text: `${tokenizer.vocabulary} in the vocabulary` },
      { name: "end tokens", ok: ends !== "", text: ends || "none: answers end at --max-tokens" },
      {
        name: "template",
        ok: file.metadata.has(TEMPLATE_KEY),
        text: templateText(file.metadata.has(TEMPLATE_KEY), frame),
      },
      ...await fittedFindings(path, config, io),
      ...notices.slice(0, MOST_NOTICES).map(({ where, text }) => ({
        name: "odd",
        ok: true,
        text: `${where}: ${text}`,
      })),
      ...(notices.length > MOST_NOTICES
        ? [{ name: "odd", ok: true, text: `${notices.length - MOST_NOTICES} more of these` }]
        : []),
    ];
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
    return [{ name: "model", ok: false, text: messageOf(error) }];
  }
}

/** What is fitted for the model, and whether the default has a gate to take. */
async function fittedFindings(path: string, config: ModelConfig, io: Io): Promise<Finding[]> {
  let sha256: Promise<string> | undefined;
  const identity = () => sha256 ??= modelHash(path, io.runtime, { signal: io.signal });
  try {
    const fitted = await fittedFor({ name: path, config, identity }, io.runtime);
    const told = fitted.map(({ policies, texts, tokens }) => {
      const counted = tokens === undefined ? [] : [`${formatCount(tokens)} tokens`];
      const on = [...counted, ...texts].join(", "), isGate = policies[0] === "gate";
      return { name: isGate ? "gate" : "fitted", ok: true, text: isGate ? on : `for ${policies.join(", ")}: ${on}` };
    });
    if (fitted.some(({ policies }) => policies[0] === "gate")) return told;
    const soon = `none yet: the first long text has one fitted; a better one: palisade calibrate --model ${path}`;
    const none = config.sources ? "none, and none can be fitted: its layers share rows" : soon;
    return [{ name: "gate", ok: false, text: none }, ...told];
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
    return [{ name: "gate", ok: false, text: messageOf(error) }];
  }
}

function layersText(config: ModelConfig): string {
  const { layers, windows } = config, windowed = layers - globalLayers(config).length;
  return `${layers} layers` +
    (windowed > 0 ? `, of which ${windowed} look back ${Math.max(...windows)} tokens only` : "");
}

/** What stays by default, where that is more than of most models. */
function keepFindings(config: ModelConfig): Finding[] {
  const heads = evictingHeads(config);
  if (heads === 0 || !hasFewHeads(config)) return [];
  const share = leastShare(config), few = `only ${heads} head${heads > 1 ? "s" : ""} can evict`;
  const text = share < 1
    ? `${formatShare(share, 1)} of a long text by default, ${DEFAULTS.leastPlaces} places for each token: ${few}`
    : `all of a text by default: ${few}`;
  return [{ name: "keep", ok: true, text }];
}

/** Types of the matrices by their share of the weights, and what becomes of those that the kernels don't multiply. */
function typesText(file: GgufFile): string {
  const shares = new Map<TensorType, number>();
  for (const { shape, type, elements } of file.tensors.values()) {
    if (shape.length > 1) shares.set(type, (shares.get(type) ?? 0) + elements);
  }
  const all = [...shares.values()].reduce((sum, count) => sum + count, 0);
  const types = [...shares].sort(([, a], [, b]) => b - a).map(([{ name, kernel, held = "F32" }, count]) => {
    return `${name} ${formatShare(count, all)}${kernel ? "" : ` (held as ${held})`}`;
  });
  return `${types.join(", ")}; ${formatBytes(neededBytes(file, "wasm", "blocks"))} on our own kernels`;
}

const TEMPLATE_KEY = "tokenizer.chat_template";
/** A vocabulary may have thousands of empty tokens. */
const MOST_NOTICES = 20;

function templateText(present: boolean, { date, thinking }: ChatFrame): string {
  if (!present) return "none: the model is asked plainly, and may only go on from texts";
  const told = date === undefined ? "" : `, and is told the date (${date})`;
  return `renders${told}${thinking ? "; knows of thinking (--think)" : ""}`;
}

async function examine({ runtime }: Io): Promise<Finding[]> {
  const cores = runtime.cores();
  const memory = runtime.memory();
  const wide = wideVectors();
  const gpu = await judgeGpu(runtime, { onlyLook: true });
  const wasm = await probeWasm(runtime);
  const web = await probeWeb();
  const node = await probeNode();
  return [
    { name: "palisade", ok: true, text: VERSION },
    { name: "runtime", ok: true, text: `${runtime.name} ${runtime.version} on ${runtime.platform}` },
    { name: "SIMD", ok: hasSimd128(), text: hasSimd128() ? "WebAssembly simd128" : "this runtime refuses simd128" },
    {
      name: "relaxed SIMD",
      ok: hasRelaxedSimd(),
      text: hasRelaxedSimd() ? "fused multiply-add may be used" : "this runtime refuses relaxed-simd modules",
    },
    { name: "wide vectors", ok: wide.on, text: wide.text },
    {
      name: "threads",
      ok: runtime.threads,
      text: `${cores.logical} hardware threads, ${cores.physical ?? "unknown"} physical cores; kernels take ` +
        `${autoThreads(runtime)} unless told (${whyOneThread(runtime) ?? "shared memory"})`,
    },
    { name: "GPU", ok: gpu.info !== undefined, text: gpu.info ? describeGpu(gpu.info) : gpu.reason },
    { name: "GPU auto", ok: gpu.taken, text: gpu.taken ? `taken: ${gpu.reason}` : `not taken: ${gpu.reason}` },
    { name: "kernels wasm", ok: wasm.available, text: wasm.reason },
    { name: "kernels ts", ok: true, text: "plain TypeScript, the slow reference" },
    { name: "dense web", ok: web.available, text: web.reason },
    {
      name: "dense node",
      ok: node.available,
      text: node.available ? `onnxruntime-node ${node.version}` : node.reason,
    },
    { name: "dense auto", ok: true, text: describeAuto(node.available) },
    {
      name: "memory",
      ok: true,
      text: memory.rssBytes === undefined ? "not told" : `${formatBytes(memory.rssBytes)} resident`,
    },
    await dataFinding(runtime),
    await cacheFinding(runtime),
  ];
}

/** Adapter, features and limits. */
function describeGpu({ description, emulated, features: { f16, subgroups }, maxBinding, maxBuffer }: GpuInfo): string {
  const has = (name: string, there: boolean) => `${there ? "" : "no "}${name}`;
  const features = `${has("16-bit floats", f16)}, ${has("subgroups", subgroups)}`;
  const sizes = `${formatBytes(maxBinding)} of a buffer in a stage, ${formatBytes(maxBuffer)} a buffer`;
  return `${emulated ? "software only: " : ""}${description}; ${features}; ${sizes}`;
}

async function probeWasm(runtime: Io["runtime"]): Promise<{ available: boolean; reason: string }> {
  try {
    using pool = await startPool(runtime, "auto");
    using backend = await pickBackend("wasm", { pool });
    return { available: true, reason: backend.detail };
  } catch (error) {
    return { available: false, reason: error instanceof Error ? error.message : String(error) };
  }
}

async function probeWeb(): Promise<{ available: boolean; reason: string }> {
  try {
    const { env } = await import("onnxruntime-web");
    return { available: true, reason: `onnxruntime-web ${env.versions.web ?? ""}` };
  } catch (error) {
    return { available: false, reason: `onnxruntime-web can't be loaded: ${String(error).split("\n")[0]}` };
  }
}

/** What this build carries: gates of known models, texts for the demo and for `calibrate`. */
async function dataFinding(runtime: Io["runtime"]): Promise<Finding> {
  const ending = async (folder: "demo" | "gates", suffix: string) =>
    (await packageData(runtime, folder)).filter(({ name }) => name.endsWith(suffix)).map(({ name }) => name);
  const gates = await ending("gates", GATE_SUFFIX), texts = await ending("demo", ".txt");
  const models = gates.map((name) => name.slice(0, -GATE_SUFFIX.length)).join(", ");
  const text = gates.length + texts.length === 0
    ? "this build carries no gates and no texts"
    : `${gates.length} gate (${models}), ${texts.length} texts`;
  return { name: "package data", ok: gates.length > 0 && texts.length > 0, text };
}

async function cacheFinding(runtime: Io["runtime"]): Promise<Finding> {
  if (!runtime.host) return { name: "cache folder", ok: false, text: "no file system in this runtime" };
  const folder = cacheFolder(runtime);
  const here = (await listModels(runtime)).filter((model) => model.present);
  const models = here.length === 0
    ? "no models yet"
    : here.map((m) => `${m.model.name} (${formatBytes(m.bytes)})`).join(", ");
  const trouble = await cantWrite(folder);
  return { name: "cache folder", ok: trouble === "", text: `${folder}: ${trouble || models}` };
}

/** Why nothing could be written into `folder`, made or still to be made; empty when it could. */
async function cantWrite(folder: string): Promise<string> {
  for (let place = folder;; place = dirname(place)) {
    try {
      await access(place, constants.W_OK);
      return (await stat(place)).isDirectory() ? "" : `${place} is not a folder`;
    } catch (error) {
      const { code } = error as { code?: string };
      if (code !== "ENOENT" || place === dirname(place)) return `${place} can't be written (${code})`;
    }
  }
}
