/** Which gate belongs to a model file. */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { packageData } from "../../runtime/package_data.ts";
import type { ModelConfig } from "../config.ts";
import { cacheFolder } from "../store/store.ts";
import { modelHash } from "../store/identity.ts";
import { checkGate, type Gate, MAX_GATE_BYTES, parseGate } from "./file.ts";

export const GATE_SUFFIX = ".gate.safetensors";

/** Reads one gate file. PalisadeErrors: `file.*`, `gate.large`, and those of {@link parseGate}. */
export async function loadGate(path: string, runtime: Runtime): Promise<Gate> {
  const source = await runtime.openFile(path);
  try {
    if (source.size > MAX_GATE_BYTES) {
      throw inputError("gate.large", `A gate of ${source.size} bytes: want at most ${MAX_GATE_BYTES}`, path);
    }
    return parseGate(await source.read(0, source.size), path);
  } finally {
    await source.close();
  }
}

/** The folder for gates that the user fitted. */
export function gateFolder(runtime: Runtime): string {
  return runtime.host!.join(cacheFolder(runtime), "gates");
}

/**
 * The gate at `path`, or the one fitted for this model among the user's own and those in the package: found by the
 * model file's SHA-256, not by a name.
 * @throws PalisadeError `gate.none`, `gate.model`, and those of {@link loadGate}.
 */
export async function findGate(
  model: { readonly path: string; readonly config: ModelConfig },
  runtime: Runtime,
  path?: string,
): Promise<Gate> {
  if (!runtime.host) throw noGate(model);
  const sha256 = await modelHash(model.path, runtime);
  if (path !== undefined) {
    const gate = await loadGate(path, runtime);
    checkGate(gate, model.config, sha256);
    return gate;
  }
  const { host } = runtime;
  const folder = gateFolder(runtime);
  const fitted = (await host.list(folder)).sort().map((name) => {
    return { name, load: () => loadGate(host.join(folder, name), runtime) };
  });
  const shipped = (await packageData(runtime, "gates")).map(({ name, read }) => {
    return { name, load: async () => parseGate(await read(), name) };
  });
  for (const { load } of [...fitted, ...shipped].filter(({ name }) => name.endsWith(GATE_SUFFIX))) {
    const gate = await load().catch(() => undefined);
    if (gate?.info.model.sha256 !== sha256) continue;
    checkGate(gate, model.config, sha256);
    return gate;
  }
  throw noGate(model);
}

function noGate({ config, path }: { readonly config: ModelConfig; readonly path: string }): PalisadeError {
  const message = `There is no gate for ${config.name}: fit one with palisade calibrate --model ${path}`;
  return inputError("gate.none", message, "--gate");
}
