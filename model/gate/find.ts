/** Which gate belongs to a model file. */
import { inputError, option, PalisadeError } from "../../core/errors.ts";
import { hostOf } from "../../runtime/host.ts";
import type { GateTarget } from "../../core/policy/policy.ts";
import type { ByteSource, Runtime } from "../../runtime/interface.ts";
import { readWhole } from "../file/read_whole.ts";
import { packageData } from "../../runtime/package_data.ts";
import type { ModelConfig } from "../config.ts";
import { cacheFolder } from "../store/store.ts";
import { checkGate, type Gate, MAX_GATE_BYTES, parseGate } from "./file.ts";

export const GATE_SUFFIX = ".gate.safetensors";
/** Of a gate that was fitted when there was none (`first.ts`): every other comes before it. */
export const FIRST_SUFFIX = ".first.safetensors";

/** Reads one gate file and closes it. PalisadeErrors: `file.*`, `gate.large`, and those of {@link parseGate}. */
export async function loadGate(from: string | ByteSource, runtime: Pick<Runtime, "openFile">): Promise<Gate> {
  const { bytes, name } = await readWhole(from, runtime, MAX_GATE_BYTES, ({ name, size }) => {
    return inputError("gate.large", `A gate of ${size} bytes: want at most ${MAX_GATE_BYTES}`, name);
  });
  return parseGate(bytes, name);
}

/** The folder for gates that the user fitted. */
export function gateFolder(runtime: Runtime): string {
  return hostOf(runtime, "look for gates").join(cacheFolder(runtime), "gates");
}

/** Where a gate is kept that this program fits by itself for the model file with this SHA-256. */
export function ownGatePath(runtime: Runtime, sha256: string, suffix: string): string {
  return hostOf(runtime, "look for gates").join(gateFolder(runtime), `${sha256.slice(0, 32)}${suffix}`);
}

/** What a gate is looked for by. */
export interface GateSubject {
  /** For messages: the model file's path, or what its source is called. */
  readonly name: string;
  readonly config: ModelConfig;
  /** SHA-256 of the model file, hexadecimal; asked for once there is a gate to compare with. */
  identity(): Promise<string>;
}

/** A gate, its file's path, or its file's bytes, which are closed when they are read. */
export type GateChoice = string | ByteSource | Gate;

/**
 * The gate that is `given`, or the one fitted for this model among the user's own, those in the package, and first gates:
 * found by the model file's SHA-256 and by what it predicts, not by a name. In a browser there are none but the one given.
 * @throws PalisadeError `gate.none`, `gate.several`, `gate.model`, `gate.towards`, and those of {@link loadGate}.
 */
export async function findGate(
  model: GateSubject,
  runtime: Runtime,
  given?: GateChoice,
  target: GateTarget = true,
): Promise<Gate> {
  if (given !== undefined) {
    const gate = isGate(given) ? given : await loadGate(given, runtime);
    checkGate(gate, model.config, await model.identity());
    checkTarget(gate, target);
    return gate;
  }
  const { host } = runtime;
  if (!host) throw noGate(model, target);
  const sha256 = await model.identity();
  const folder = gateFolder(runtime);
  const own = (await host.list(folder)).sort().map((name) => {
    return { name, load: () => loadGate(host.join(folder, name), runtime) };
  });
  const shipped = (await packageData(runtime, "gates")).map(({ name, read }) => {
    return { name, load: async () => parseGate(await read(), name) };
  });
  // The user's own come first: one that was fitted here is there to be used.
  const ending = (suffix: string, gates: typeof own) => gates.filter(({ name }) => name.endsWith(suffix));
  for (const gates of [ending(GATE_SUFFIX, own), ending(GATE_SUFFIX, shipped), ending(FIRST_SUFFIX, own)]) {
    const [gate, other] = await fittedTo(sha256, target, gates);
    if (other) throw severalGates(model, [gate, other].map(({ name }) => name));
    if (!gate) continue;
    checkGate(gate, model.config, sha256);
    return gate;
  }
  throw noGate(model, target);
}

/** Those of the files that are gates of the model with this SHA-256 towards the target; what can't be read is passed over. */
async function fittedTo(
  sha256: string,
  target: GateTarget,
  files: readonly { readonly name: string; load(): Promise<Gate> }[],
): Promise<Gate[]> {
  const fitted: Gate[] = [];
  for (const { load } of files) {
    const gate = await load().catch(() => undefined);
    const { model, calibration } = gate?.info ?? {};
    if (model?.sha256 === sha256 && (calibration!.towards ?? true) === target) fitted.push(gate!);
  }
  return fitted;
}

function severalGates({ config }: GateSubject, names: readonly string[]): PalisadeError {
  const message = `Several gates are fitted to ${config.name}: ${names.join(" and ")}; name one, or remove the others`;
  return inputError("gate.several", message, option("gate"));
}

function isGate(given: GateChoice): given is Gate {
  return typeof given === "object" && "weights" in given;
}

/**
 * Refuses a gate that predicts something else.
 * @throws PalisadeError `gate.towards`, naming both.
 */
export function checkTarget({ name, info: { calibration } }: Gate, wanted: GateTarget): void {
  const words = (target: GateTarget) => target === "kvzip-plus" ? target : "kvzip";
  const fitted = words(calibration.towards ?? true), asked = words(wanted);
  if (fitted === asked) return;
  const message = `The gate predicts what ${fitted} scores, and the policy asks for ${asked}'s scores: ${
    fitOne(wanted)
  }`;
  throw inputError("gate.towards", message, name);
}

function noGate({ config, name }: GateSubject, target: GateTarget): PalisadeError {
  const what = target === "kvzip-plus" ? "gate towards kvzip-plus" : "gate";
  const message = `There is no ${what} for ${config.name}: ${fitOne(target)} --model ${name}`;
  return inputError("gate.none", message, option("gate"));
}

/** Whether an error says that there is no gate. */
export function saysNoGate(error: unknown): boolean {
  return error instanceof PalisadeError && error.code === "gate.none";
}

function fitOne(target: GateTarget): string {
  return `fit one with palisade calibrate${target === "kvzip-plus" ? " --kind kvzap" : ""}`;
}
