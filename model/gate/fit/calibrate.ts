/**
 * Fits a gate for a model on this machine: layer by layer, for all texts, KVzip's importance, or KVzip+'s
 * (`model/read/reconstruct.ts`), is regressed on the attention layer's input after its norm.
 *
 * Layer-major over all texts: a layer's keys and values exist for one text at a time, XᵀX for one layer. What goes from
 * layer to layer is the hidden states of the texts and of the prompts that repeat them, about 2 × tokens × width
 * floats; they are saved so that a calibration goes on where it was stopped.
 */
import type { Tensor } from "../../../core/backend/tensor.ts";
import { RaggedCache } from "../../../core/cache/ragged.ts";
import { conformalQuantile } from "../../../core/worst_case/conformal.ts";
import { windowOf } from "../../../core/shape.ts";
import type { Runtime } from "../../../runtime/interface.ts";
import { GATE_FORMAT, type GateInfo } from "../file.ts";
import { keyTerms } from "../key_terms.ts";
import type { GateWeights } from "../scorer.ts";
import type { Rope } from "../../config.ts";
import type { Model } from "../../model.ts";
import type { HiddenStates } from "../../read/hidden_states.ts";
import { LayerReader } from "../../read/layer_reader.ts";
import { checkOwnRows } from "../../read/shared_rows.ts";
import { repeatPrompts } from "../../read/reconstruct.ts";
import { algebraOf } from "./algebra.ts";
import {
  type FittedHeads,
  FLOOR,
  LayerCalibration,
  type LayerFit,
  type LayerText,
  RECENT,
  SKIPPED,
  unfitted,
} from "./layer.ts";
import { type CalibrationPlan, HELD_OUT_TOKENS } from "./plan.ts";
import { restore, save } from "./state.ts";

/** Milliseconds of work that may be lost: the state is saved after the first layer that ends so long after the last. */
const SAVE_EVERY_MS = 5000;

export interface CalibrateOptions {
  /** SHA-256 of the model file. */
  readonly sha256: string;
  /** Whose importance the gate is to predict. Default KVzip's. */
  readonly towards?: "kvzip-plus";
  /** Where to keep the state; without one a stopped calibration begins anew. */
  readonly statePath?: string;
  /** Milliseconds between two saved states, at the least. Default 5000. */
  readonly saveEveryMs?: number;
  /** Called after every text with texts × layers. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** How often the worst-case margin held. */
export interface Coverage {
  readonly coverage: number;
  /** The margin: ln importance ≤ score + q. */
  readonly margin: number;
  /** Share of held-out texts within the margin of all the others. */
  readonly heldOut: number;
  /** Share of texts of a kind never seen within the margin; nothing is promised for them. */
  readonly shifted: number;
}

export interface Calibration {
  readonly info: GateInfo;
  readonly gate: GateWeights;
  /** Empty where no texts were held out. */
  readonly coverage: readonly Coverage[];
}

/** Coverages that are reported. */
const COVERAGES = [0.8, 0.9, 0.95];

/**
 * Fits the gate. When `signal` aborts, the last saved state stays and the promise rejects with its reason.
 * @throws PalisadeError `shared-rows.calibrate`, as `repeatPrompts`, and what files and engines throw.
 */
export async function calibrate(
  model: Model,
  runtime: Runtime,
  plan: CalibrationPlan,
  options: CalibrateOptions,
): Promise<Calibration> {
  const { config } = model, { statePath, signal, onProgress } = options, keyed = options.towards === undefined;
  checkOwnRows(config);
  const texts: TextReader[] = [];
  try {
    for (const ids of [...plan.fit, ...plan.heldOut, ...plan.shifted]) {
      texts.push(await TextReader.open(model, ids, options));
    }
    const states = texts.flatMap((text) => text.states());
    const fingerprint = fingerprintOf(model, runtime, plan, options);
    const layers = statePath ? await restore(statePath, runtime, fingerprint, states) : [];
    const algebra = algebraOf(model.backend);
    let saved = performance.now(), done = layers.length * texts.length;
    for (let layer = layers.length; layer < config.layers; layer++) {
      const gains = await model.file.readFloat32(`blk.${layer}.attn_norm.weight`);
      const looksAtAll = windowOf(config, layer) === Infinity;
      const rope = keyed && looksAtAll ? config.ropes[layer] : undefined;
      const calibration = looksAtAll ? new LayerCalibration(config, gains, keyed, algebra) : undefined;
      for (const [i, text] of texts.entries()) {
        signal?.throwIfAborted();
        const seen = await text.layer(layer, rope);
        if (i < plan.fit.length) calibration?.add(seen);
        else calibration?.check(seen, i < plan.fit.length + plan.heldOut.length ? "heldOut" : "shifted");
        if (i === plan.fit.length - 1) calibration?.fit();
        onProgress?.(++done, texts.length * config.layers);
      }
      layers.push(calibration?.result() ?? unfitted(config, keyed));
      if (statePath && performance.now() - saved >= (options.saveEveryMs ?? SAVE_EVERY_MS)) {
        await save(statePath, runtime, { fingerprint, layers }, states);
        saved = performance.now();
      }
    }
    return assemble(model, plan, layers, options);
  } finally {
    for (const text of texts) text[Symbol.dispose]();
  }
}

/** What must be the same for a state to be gone on from. */
function fingerprintOf(
  model: Model,
  runtime: Runtime,
  plan: CalibrationPlan,
  { sha256, towards }: CalibrateOptions,
): string {
  const hasher = runtime.sha256();
  const { frame, dense, backend } = model;
  const parts = [
    sha256,
    frame,
    plan,
    dense.detail,
    backend.detail,
    FLOOR,
    SKIPPED,
    RECENT,
    ...(towards ? [towards] : ["keyed"]),
  ];
  hasher.update(new TextEncoder().encode(JSON.stringify(parts)));
  return hasher.digest();
}

/** One text on its way through the layers; gives up each layer's keys and values at once. */
class TextReader implements Disposable {
  readonly #cache: RaggedCache;
  readonly #reader: LayerReader;
  readonly #input: LayerInputs;

  private constructor(cache: RaggedCache, reader: LayerReader, input: LayerInputs) {
    this.#cache = cache;
    this.#reader = reader;
    this.#input = input;
  }

  static async open(
    model: Model,
    ids: readonly number[],
    { towards, signal }: Pick<CalibrateOptions, "towards" | "signal">,
  ): Promise<TextReader> {
    const { width } = model.config, { tensors } = model.backend;
    const reconstruction = { chunk: ids.length, postfix: 0 }, prompts = repeatPrompts(model, ids, reconstruction);
    const cache = new RaggedCache(model.backend, model.config);
    const input: LayerInputs = { tokens: ids.length, width, numbers: new Float32Array(0) };
    const onInput = async (_layer: number, hidden: Tensor, first: number) => {
      input.numbers.set(await tensors.read(hidden), first * width);
    };
    const needs = { reconstruction: { ...reconstruction, contribution: towards !== undefined } };
    const outputWeights = (layer: number) => model.file.readFloat32(`blk.${layer}.attn_output.weight`);
    const seeing = { needs, window: 0, prompts, onInput, outputWeights, signal };
    const reader = await LayerReader.open(model, cache, ids, seeing);
    return new TextReader(cache, reader, input);
  }

  states(): HiddenStates[] {
    return this.#reader.states();
  }

  /** `rope`: the layer's, where its keys are looked at. */
  async layer(layer: number, rope?: Rope): Promise<LayerText> {
    const { tokens, width } = this.#input, hidden = new Float32Array(tokens * width);
    this.#input.numbers = hidden;
    const seen = await this.#reader.layer(layer);
    this.#reader.release(seen);
    const terms = rope && await keyTerms({ rows: this.#cache.rows(layer), rope }, tokens);
    this.#cache.clear(layer);
    this.#input.numbers = new Float32Array(0);
    return { hidden, importance: seen.reconstruction ?? new Float32Array(0), tokens, terms };
  }

  [Symbol.dispose](): void {
    this.#reader[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
  }
}

/** The input of the layer that is being read. */
interface LayerInputs {
  readonly tokens: number;
  readonly width: number;
  /** `[tokens, width]`; empty between layers. */
  numbers: Float32Array;
}

function assemble(
  { config }: Model,
  plan: CalibrationPlan,
  layers: readonly LayerFit[],
  { sha256, towards }: CalibrateOptions,
): Calibration {
  const { name, architecture, kvHeads, width } = config;
  const worst = (set: "heldOut" | "shifted") =>
    plan[set].map((_, text) => Math.max(...layers.flatMap((layer) => layer.worst[set][text] ?? [])));
  const scores = worst("heldOut"), shifted = worst("shifted");
  const flat = (fits: readonly FittedHeads[]) => ({
    weights: Float32Array.from(fits.flatMap((fit) => fit.weights.flat())),
    bias: Float32Array.from(fits.flatMap((fit) => fit.bias)),
  });
  const keyed = layers.flatMap((layer) => layer.keyed ?? []);
  const terms = Float32Array.from(keyed.flatMap((fit) => fit.terms.flat()));
  return {
    gate: { ...flat(layers), ...(keyed.length > 0 && { keyed: { ...flat(keyed), terms } }) },
    info: {
      format: GATE_FORMAT,
      model: { name, sha256, architecture, layers: config.layers, kvHeads, width },
      calibration: {
        texts: plan.sources,
        seed: plan.seed,
        tokens: plan.fit.reduce((sum, ids) => sum + ids.length, 0),
        textTokens: Math.max(...plan.fit.map((ids) => ids.length)),
        floor: FLOOR,
        ...(towards && { towards }),
        skipped: SKIPPED,
      },
      ridge: layers.map(({ ridge }) => ridge),
      correlation: layers.map(({ correlation }) => correlation),
      conformal: {
        textTokens: HELD_OUT_TOKENS,
        window: RECENT,
        scores: [...scores].sort((a, b) => a - b).map((score) => Number(score.toFixed(4))),
      },
    },
    coverage: scores.length === 0 ? [] : COVERAGES.map((coverage) => coverageOf(coverage, scores, shifted)),
  };
}

function coverageOf(coverage: number, scores: readonly number[], shifted: readonly number[]): Coverage {
  const margin = conformalQuantile(scores, coverage);
  const covered = scores.filter((score, i) => score <= conformalQuantile(scores.filter((_, j) => j !== i), coverage));
  return {
    coverage,
    margin,
    heldOut: covered.length / scores.length,
    shifted: shifted.filter((score) => score <= margin).length / shifted.length,
  };
}
