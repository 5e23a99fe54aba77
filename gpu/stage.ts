/**
 * Stages: one `.wgsl` file each, made for a shape by its `override` constants and kept.
 *
 * A file is valid as it stands and runs everywhere. A line that ends in `// f16: …` or `// subgroups: …` is replaced by
 * what follows the colon where the device has that feature; a line may be the comment alone.
 */
import type { Call } from "./device.ts";
import { badStage } from "./errors.ts";
import type { GpuFeatures } from "./open.ts";

/** The text of a stage's file. */
export interface ShaderFile {
  /** Path below `gpu/`. */
  readonly name: string;
  readonly text: string;
}

export interface StageOptions {
  /** Default `main`. */
  readonly entry?: string;
  /** `override` constants by name. */
  readonly constants?: Readonly<Record<string, number>>;
}

/** Buffers that were bound to a stage. */
export interface Bound {
  /** Where the parameters lie, and their bytes. */
  readonly start: number;
  readonly size: number;
  readonly buffers: Call["buffers"];
  readonly group: GPUBindGroup;
}

/** A compiled stage. */
export interface Stage {
  readonly name: string;
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  /** What was bound before, by a hash of it (`gpu/device.ts`). */
  readonly bound: Map<number, Bound[]>;
}

/** The text as a device with these features runs it. */
export function variant(text: string, features: GpuFeatures): string {
  return text.split("\n").map((line) => {
    const marked = /^(.*?)\/\/ (f16|subgroups): (.*)$/.exec(line);
    return marked && features[marked[2] as keyof GpuFeatures] ? marked[3] : line;
  }).join("\n");
}

/** All stages of one device. `failed` hears of a stage that doesn't compile, later. */
export class StageCache {
  readonly #device: GPUDevice;
  readonly #features: GpuFeatures;
  readonly #failed: (checked: Promise<Error | undefined>) => void;
  readonly #modules = new Map<ShaderFile, GPUShaderModule>();
  readonly #stages = new Map<ShaderFile, Map<string, Stage>>();

  constructor(device: GPUDevice, features: GpuFeatures, failed: (checked: Promise<Error | undefined>) => void) {
    this.#device = device;
    this.#features = features;
    this.#failed = failed;
  }

  /** The stage, compiled when it is first asked for. */
  get(file: ShaderFile, { entry = "main", constants = {} }: StageOptions = {}): Stage {
    const key = `${entry} ${Object.entries(constants).map(([name, value]) => `${name}=${value}`).join(" ")}`;
    const known = this.#stages.get(file) ?? new Map<string, Stage>();
    this.#stages.set(file, known);
    const found = known.get(key);
    if (found) return found;
    const made = this.#compile(file, entry, constants);
    known.set(key, made);
    return made;
  }

  #compile(file: ShaderFile, entry: string, constants: Readonly<Record<string, number>>): Stage {
    this.#device.pushErrorScope("validation");
    try {
      const module = this.#modules.get(file) ??
        this.#device.createShaderModule({ label: file.name, code: variant(file.text, this.#features) });
      this.#modules.set(file, module);
      const pipeline = this.#device.createComputePipeline({
        label: `${file.name} ${entry}`,
        layout: "auto",
        compute: { module, entryPoint: entry, constants: { ...constants } },
      });
      return { name: `${file.name}, ${entry}`, pipeline, layout: pipeline.getBindGroupLayout(0), bound: new Map() };
    } finally {
      const scope = this.#device.popErrorScope();
      this.#failed(scope.then((error) => {
        if (!error) return undefined;
        // Asked for again it may be another text (tests), or a device that can.
        this.#stages.delete(file);
        this.#modules.delete(file);
        return badStage(`${file.name}, ${entry}`, error.message.split("\n").slice(0, 6).join(" "));
      }, () => undefined));
    }
  }
}
