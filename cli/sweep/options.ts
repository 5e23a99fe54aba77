/** What `palisade eval` can be told. */
import { checkCacheType, ROW_TYPES } from "../../core/cache/entry_type.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { ENGINES } from "../engine.ts";
import type { OptionNames } from "../failure.ts";
import { parsePart } from "../../evaluate/sweep/plan.ts";
import { PRESET_NAMES } from "../../evaluate/sweep/presets.ts";
import { list, type OptionTable, type Values, whole } from "../options.ts";
import { modelWords, policyWords, taskWords } from "../words.ts";

export const EVAL_OPTIONS = {
  out: { value: "file", help: "results, one JSON line per cell; only appended to", required: true, own: true },
  tasks: {
    value: "list",
    help: "RULER's by name, ruler for all, qa:FILE, jsonl:FILE",
    read: list,
    preset: "ruler",
    words: taskWords,
  },
  length: { value: "list", help: "tokens of the whole prompt and answer", read: list, preset: "1k" },
  policies: {
    value: "list",
    help: "see: palisade policies",
    read: list,
    preset: "full,snapkv,layer-defensive",
    words: policyWords,
    here: "policies",
  },
  keep: { value: "list", help: "budgets: 20%, 0.2, or tokens per head", read: list, preset: DEFAULTS.keep },
  bytes: {
    value: "list",
    help: "in place of keep: 1/16 of the whole cache as float16, or 2MB",
    read: list,
    rare: true,
  },
  preset: { value: "name", help: "policies, bytes and tasks", choices: PRESET_NAMES, rare: true },
  part: { value: "i/n", help: "the i-th of n shares of the samples", read: parsePart, rare: true },
  samples: { value: "n", help: "samples per task and length", read: whole(1), preset: 10 },
  seed: { value: "n", help: "seed of the samples", read: whole(0), preset: 1 },
  models: {
    value: "list",
    help: "named models or files",
    read: list,
    preset: DEFAULTS.model,
    words: modelWords,
    here: "models",
  },
  queryAware: { help: "compress after the question, not before it" },
  cacheType: {
    value: "type",
    help: `keys and values: ${ROW_TYPES.join(", ")}, or apart: k=int4,v=int8`,
    read: checkCacheType,
    shown: DEFAULTS.cacheType,
    rare: true,
    words: () => ROW_TYPES,
  },
  gate: { value: "file", help: "for policy gate, instead of the one found", rare: true },
  haystack: { value: "file", help: "prose to hide needles in, not Moby-Dick", rare: true },
  beyondTrained: { help: "allow more tokens than the model was trained on", rare: true },
  queue: { value: "url", help: "let palisade worker compute: redis://HOST:PORT", personal: true, secret: true },
  ...ENGINES,
  json: { help: "print one object at the end: what was computed" },
} satisfies OptionTable;

/** What `eval` calls options of the library. */
export const EVAL_NAMES = { policy: "policies", model: "models" } satisfies OptionNames;

export type EvalOptions = Values<typeof EVAL_OPTIONS>;
