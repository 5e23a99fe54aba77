import type { Rope } from "../../config.ts";
import { inputError } from "../../../core/errors.ts";
import { quoted } from "./cursor.ts";
import { optionalNumber, optionalString, refuseField, requireNumber } from "./fields.ts";
import type { GgufFile } from "./types.ts";

const DEFAULT_BASE = 10000;
/** YaRN's defaults, arXiv 2309.00071 section 3.2. */
const BETA_FAST = 32;
const BETA_SLOW = 1;
const FACTORS = "rope_freqs.weight";
/** LongRoPE's divisors: for contexts beyond the original one, and within it. */
const LONG = "rope_factors_long.weight", SHORT = "rope_factors_short.weight";

/** What RoPE's fields depend on besides the file. */
export interface RopeContext {
  /** Prefix of the keys. */
  readonly architecture: string;
  readonly pairs: Rope["pairs"];
  readonly headDim: number;
  /** Whether YaRN's borders stay fractions of pairs. */
  readonly fractionalYarn?: true;
  /** Trained context in tokens. */
  readonly contextLength: number;
  /** Most tokens there will be at once. */
  readonly tokens: number;
}

/**
 * RoPE as the metadata has it: plain, linear or YaRN scaling, and the divisors of `rope_freqs.weight` (llama 3) or, by
 * the tokens to come, of `rope_factors_long.weight` or `rope_factors_short.weight` (LongRoPE, arXiv 2402.13753).
 * YaRN's frequencies and default attention factor follow transformers (`modeling_rope_utils.py`,
 * `_compute_yarn_parameters`); `rope.scaling.attn_factor` multiplies that factor, as in llama.cpp (`llama-context.cpp`).
 * Errors: `gguf.missing`, `gguf.value`, `gguf.shape`, `gguf.unsupported`.
 */
export async function ropeOf(gguf: GgufFile, context: RopeContext): Promise<Rope> {
  const { architecture } = context;
  const rotated = rotatedOf(gguf, context);
  const base = optionalNumber(gguf, `${architecture}.rope.freq_base`, { min: 1 }) ?? DEFAULT_BASE;
  const divided = await divide(gguf, factorsOf(gguf, context), frequenciesOf(base, rotated));
  return { pairs: context.pairs, rotated, ...scale(gguf, divided, base, context), ...growthOf(gguf, context) };
}

/** The context that a choice of factors is good for: within LongRoPE's original one nothing beyond it can follow. */
export function rotationLimit(gguf: GgufFile, architecture: string, trained: number, tokens = trained): number {
  if (!gguf.tensors.has(LONG) && !gguf.tensors.has(SHORT)) return trained;
  const original = originalLength(gguf, architecture);
  return tokens > original ? trained : Math.min(trained, original);
}

function originalLength(gguf: GgufFile, architecture: string): number {
  return requireNumber(gguf, `${architecture}.rope.scaling.original_context_length`, { min: 1, integer: true });
}

/** RoPE of layers that look back over a window: a base of its own, no scaling. */
export function localRope(gguf: GgufFile, context: RopeContext): Rope {
  const own = `${context.architecture}.rope.dimension_count_swa`;
  const rotated = gguf.metadata.has(own) ? rotatedOf(gguf, context, own) : rotatedOf(gguf, context);
  const base = optionalNumber(gguf, `${context.architecture}.rope.freq_base_swa`, { min: 1 }) ?? DEFAULT_BASE;
  return { pairs: context.pairs, rotated, frequencies: frequenciesOf(base, rotated), magnitude: 1 };
}

/** No rotation. */
export function noRope({ pairs }: RopeContext): Rope {
  return { pairs, rotated: 0, frequencies: new Float64Array(0), magnitude: 1 };
}

function rotatedOf(
  gguf: GgufFile,
  { architecture, headDim }: RopeContext,
  key = `${architecture}.rope.dimension_count`,
): number {
  const rotated = optionalNumber(gguf, key, { min: 2, max: headDim, integer: true }) ?? headDim;
  if (rotated % 2 !== 0) throw refuseField(gguf, key, "gguf.value", `${rotated} dimensions; they go in pairs`);
  return rotated;
}

function frequenciesOf(base: number, rotated: number): Float64Array {
  return Float64Array.from({ length: rotated / 2 }, (_, j) => base ** (-2 * j / rotated));
}

/**
 * The tensor of divisors that counts. Of LongRoPE's two it is one for good, since keys of a cache must all be turned
 * alike.
 */
function factorsOf(gguf: GgufFile, { architecture, tokens }: RopeContext): string {
  if (!gguf.tensors.has(LONG) && !gguf.tensors.has(SHORT)) return FACTORS;
  const name = tokens > originalLength(gguf, architecture) ? LONG : SHORT;
  if (gguf.tensors.has(name)) return name;
  throw inputError("gguf.missing", `${gguf.name}: there is no tensor ${name}`, `tensor[${quoted(name)}]`);
}

/** Divides by the factors of a tensor, where the file has it. */
async function divide(gguf: GgufFile, name: string, frequencies: Float64Array): Promise<Float64Array> {
  const tensor = gguf.tensors.get(name);
  if (tensor === undefined) return frequencies;
  const where = `tensor[${quoted(name)}]`;
  if (tensor.shape.length !== 1 || tensor.elements !== frequencies.length) {
    throw inputError(
      "gguf.shape",
      `${gguf.name}: ${name} has shape [${tensor.shape}]; [${frequencies.length}] is right`,
      `${where}.shape`,
    );
  }
  const factors = await gguf.readFloat32(name);
  return frequencies.map((frequency, j) => {
    if (Number.isFinite(factors[j]) && factors[j] > 0) return frequency / factors[j];
    throw inputError("gguf.value", `${gguf.name}: ${name}[${j}] is ${factors[j]}; positive is right`, where);
  });
}

function scale(
  gguf: GgufFile,
  frequencies: Float64Array,
  base: number,
  context: RopeContext,
): Pick<Rope, "frequencies" | "magnitude"> {
  const prefix = `${context.architecture}.rope.scaling`;
  const attention = optionalNumber(gguf, `${prefix}.attn_factor`, { min: Number.MIN_VALUE }) ?? 1;
  const type = scalingType(gguf, context.architecture);
  switch (type) {
    case "none":
      return { frequencies, magnitude: attention };
    case "linear": {
      const factor = scalingFactor(gguf, context.architecture);
      return { frequencies: frequencies.map((frequency) => frequency / factor), magnitude: attention };
    }
    case "yarn": {
      const factor = scalingFactor(gguf, context.architecture);
      const magnitude = attention * attentionFactor(gguf, factor, `${prefix}.yarn_log_multiplier`);
      return { frequencies: yarn(gguf, frequencies, base, factor, context), magnitude };
    }
    default:
      throw refuseField(
        gguf,
        `${prefix}.type`,
        "gguf.unsupported",
        `RoPE scaling ${quoted(type)}; supported are none, linear and yarn`,
      );
  }
}

/** YaRN's, divided by that of a model that was trained with some of it. */
function attentionFactor(gguf: GgufFile, factor: number, key: string): number {
  const trained = optionalNumber(gguf, key, { min: 0 }) ?? 0, logarithm = factor > 1 ? 0.1 * Math.log(factor) : 0;
  return (logarithm + 1) / (trained * logarithm + 1);
}

/** How queries grow with their position: in steps of the original context where no other length is given. */
function growthOf(gguf: GgufFile, { architecture, contextLength }: RopeContext): Pick<Rope, "growth"> {
  const scale = optionalNumber(gguf, `${architecture}.attention.temperature_scale`, { min: 0 }) ?? 0;
  const steps = { min: 1, integer: true };
  const length = optionalNumber(gguf, `${architecture}.attention.temperature_length`, steps) ??
    optionalNumber(gguf, `${architecture}.rope.scaling.original_context_length`, steps) ?? contextLength;
  return scale === 0 ? {} : { growth: { scale, length } };
}

/** A factor without a type means linear, as llama.cpp takes it. */
function scalingType(gguf: GgufFile, architecture: string): string {
  const type = optionalString(gguf, `${architecture}.rope.scaling.type`);
  if (type !== undefined) return type;
  const keys = [`${architecture}.rope.scaling.factor`, `${architecture}.rope.scale_linear`];
  return keys.some((key) => gguf.metadata.has(key)) ? "linear" : "none";
}

function scalingFactor(gguf: GgufFile, architecture: string): number {
  const range = { min: Number.MIN_VALUE };
  const older = `${architecture}.rope.scale_linear`;
  const key = `${architecture}.rope.scaling.factor`;
  if (!gguf.metadata.has(key) && gguf.metadata.has(older)) return requireNumber(gguf, older, range);
  return requireNumber(gguf, key, range);
}

/** Fast pairs keep their frequency, slow ones are divided by `factor`, those between are mixed. */
function yarn(
  gguf: GgufFile,
  frequencies: Float64Array,
  base: number,
  factor: number,
  context: RopeContext,
): Float64Array {
  const prefix = `${context.architecture}.rope.scaling`;
  for (const key of ["yarn_ext_factor", "yarn_attn_factor"]) {
    if (gguf.metadata.has(`${prefix}.${key}`)) {
      throw refuseField(gguf, `${prefix}.${key}`, "gguf.unsupported", "this YaRN setting is not supported");
    }
  }
  if (base <= 1) {
    throw refuseField(gguf, `${context.architecture}.rope.freq_base`, "gguf.value", `${base}; YaRN needs more than 1`);
  }
  const positive = { min: Number.MIN_VALUE };
  const fast = optionalNumber(gguf, `${prefix}.yarn_beta_fast`, positive) ?? BETA_FAST;
  const slow = optionalNumber(gguf, `${prefix}.yarn_beta_slow`, positive) ?? BETA_SLOW;
  const original = optionalNumber(gguf, `${prefix}.original_context_length`, { min: 1, integer: true }) ??
    context.contextLength;

  const rotated = 2 * frequencies.length;
  /** The (fractional) pair that turns `turns` times over the original context. */
  const pairOf = (turns: number) => rotated * Math.log(original / (turns * 2 * Math.PI)) / (2 * Math.log(base));
  const [first, last] = [pairOf(fast), pairOf(slow)], whole = !context.fractionalYarn;
  const low = Math.max(whole ? Math.floor(first) : first, 0);
  const high = Math.min(whole ? Math.ceil(last) : last, rotated - 1);
  const span = Math.max(high - low, 0.001);
  return frequencies.map((frequency, j) => {
    const slowness = Math.min(Math.max((j - low) / span, 0), 1);
    return frequency * (1 - slowness) + frequency / factor * slowness;
  });
}
