/** The closing report of a session: everything counted, nothing estimated. Its fields are the JSON of the command line. */
import { type Health, healthOf } from "../core/cache/health.ts";
import { type CacheType, entryBytes } from "../core/cache/entry_type.ts";
import type { ParameterValues } from "../core/policy/policy.ts";
import { layerEntries, layerShape, reachableEntries, sourceOf, windowOf } from "../core/shape.ts";
import type { MemoryUse } from "../runtime/interface.ts";
import { type CertificateReport, certificateReport } from "./certificate_report.ts";
import type { NotKept } from "./gate/kept.ts";
import type { WorstCase } from "./gate/worst_case.ts";
import type { Model } from "./model.ts";
import { type ForesightFigures, foresightFigures } from "./foresight/foresee.ts";
import type { EffortFigures } from "./read/effort.ts";
import type { KeyChannelFigures } from "./read/key_channels.ts";
import type { MergeFigures } from "./read/merge.ts";
import type { RefitFigures } from "./read/refit.ts";
import { frameText } from "./text/frames.ts";
import type { ChatFrame } from "./text/prompt.ts";
import type { Answer, CapFigures, Context, Finish, Positions } from "./session.ts";

export interface LayerReport {
  /** Tokens that the layer looks back; null for one that looks at everything, which alone evicts. */
  readonly window: number | null;
  readonly kept: number;
  /** Entries that could still be read. */
  readonly evicted: number;
  /** Entries per KV head. */
  readonly heads: readonly number[];
}

/** Answers, and the figures of the run. */
export interface Report {
  /** The first question's answer. */
  readonly answer: string;
  readonly answers: readonly {
    readonly question: string;
    readonly answer: string;
    /** What the model thought first; null where it didn't. */
    readonly thinking: string | null;
    readonly finish: Finish;
  }[];
  /** Its short name, and what its file calls itself. */
  readonly model: string;
  readonly modelTitle: string;
  readonly frame: FrameReport;
  readonly backend: string;
  readonly dense: string;
  /** One line each on what really ran. */
  readonly engines: { readonly backend: string; readonly dense: string };
  readonly policy: ParameterValues & { readonly name: string };
  readonly keep: {
    /** As it was asked for, or the default. */
    readonly asked: string;
    /** Entries per head on average. */
    readonly tokensPerHead: number;
    /** Those kept of the layers that look at everything: a budget speaks of them. */
    readonly entries: number;
    /** True when the budget covers the whole context, so that nothing was evicted. */
    readonly everything: boolean;
    /** True when nothing was asked for and the least decided, not the default share: 512 entries, or two places a token. */
    readonly least: boolean;
  };
  /** Layers that look back over a window: they hold what they can still see, whatever the budget. Null where none does. */
  readonly windows: WindowsReport | null;
  /** Null unless a risk took the place of `keep`. */
  readonly risk: RiskReport | null;
  /** What eviction can have cost; null unless asked. */
  readonly certificate: CertificateReport | null;
  /** What was chosen; null unless `effort` was `best`. */
  readonly effort: EffortFigures | null;
  /** Null unless what stays was refitted. */
  readonly refit: RefitFigures | null;
  /** Null unless evicted entries were merged into what stays. */
  readonly merge: MergeFigures | null;
  /** Null unless the model's first gate was fitted before this text was read. */
  readonly firstGate: FirstGateReport | null;
  /** Null unless a gate was fitted in this reading. */
  readonly selfGate: SelfGateReport | null;
  /** Null unless channels of keys were left out. */
  readonly keyChannels: KeyChannelFigures | null;
  /** What a generated token reads of each head, which keeps everything; null where it reads all. */
  readonly foresight: ForesightFigures | null;
  /** Last tokens that are observed and protected: what was wanted, and what the text was long enough for. */
  readonly window: { readonly asked: number; readonly used: number };
  /** First tokens that are protected. */
  readonly sinks: number;
  readonly tokens: {
    readonly context: number;
    /** Tokens of the context that came from a snapshot instead of being read. */
    readonly reused: number;
    readonly question: number;
    readonly generated: number;
    /** Characters of the context that the model has no token for: it read U+FFFD in their place. */
    readonly replaced: number;
    /** Control tokens in the answers that ended nothing: they are left out of the text. */
    readonly leftOut: number;
  };
  /** Answers that were ended because they said one phrase over and over. */
  readonly loops: number;
  readonly cache: {
    /** How keys and values are stored. */
    readonly type: CacheType;
    /** Of all layers, windows included. */
    readonly kept: number;
    /** Entries that could still be read if they were there. */
    readonly evicted: number;
    /** Live bytes of the evicted cache. */
    readonly bytes: number;
    /** The same with what is free in its pages. */
    readonly allocatedBytes: number;
    /** What the whole context's cache would hold of what could still be read, in the same type. */
    readonly fullBytes: number;
    /** The most live bytes, candidate scores included, at any time since reading began. */
    readonly peakBytes: number;
    /** WebAssembly memory of the kernels; 0 for the plain backend. */
    readonly wasmHighWater: number;
    readonly perLayer: readonly LayerReport[];
  };
  readonly positions: Positions;
  /** Which snapshot took the place of reading, or why none did; null where none was looked for. */
  readonly snapshot: { readonly used: string | null; readonly missed: string | null } | null;
  /** The cache when the last answer ended; without answers, when the context was read. */
  readonly health: Health;
  /** Null without a cap. */
  readonly maxCache: MaxCacheReport | null;
  /** The day that the chat template was told, `2026-03-09`; null where it doesn't ask. */
  readonly templateDate: string | null;
  /** The most bytes of hidden states, and of what is computed from them, at any time. */
  readonly activationBytes: number;
  readonly ms: {
    readonly load: number;
    readonly prefill: number;
    readonly evict: number;
    /** Restoring a snapshot; 0 when the context was read. */
    readonly restore: number;
    /** Question tokens of all questions. */
    readonly question: number;
    /** Of one token of an answer, on average; 0 where nothing was decoded. */
    readonly decodePerToken: number;
  };
  readonly memory: MemoryReport;
}

/** The first gate of a model that had none. */
export interface FirstGateReport {
  /** Tokens of built-in text that it was fitted on. */
  readonly tokens: number;
  readonly ms: number;
  /** Whether it was kept for readings to come; if not, why. */
  readonly stored: boolean;
  readonly why: string | null;
}

/** A gate that was fitted on the text while it was read. */
export interface SelfGateReport {
  /** Tokens of this text that it was fitted on; 0 where all of it was repeated, so that nothing was to be predicted. */
  readonly tokens: number;
  /** Tokens behind what it began with: of earlier texts, or of a gate that was fitted for the model. */
  readonly known: number;
  /** Tokens that the model repeated. */
  readonly repeated: number;
  /** Whether it was kept for texts to come; if not, why. */
  readonly stored: boolean;
  readonly why: string | null;
}

/** Bytes of the whole process, null where the runtime doesn't tell, and what of them is counted where it is held. */
export interface MemoryReport {
  readonly rss: number | null;
  /** The most it ever was. */
  readonly peakRss: number | null;
  /** The model's weights, as the engines hold them. */
  readonly weights: number;
  /** What the evicted cache takes, pages not yet given back included. */
  readonly cache: number;
}

/** Window layers of a model. */
export interface WindowsReport {
  /** How many there are, of how many. */
  readonly layers: number;
  readonly of: number;
  /** Tokens that they look back, the widest of them. */
  readonly tokens: number;
  /** Entries that they hold. */
  readonly entries: number;
}

/** What stood around text and question. */
export interface FrameReport {
  /** `chat`: the file's template; `plain`: it has none, so the model was asked plainly; `none`: gone on with the text. */
  readonly kind: ChatFrame["kind"];
  /** A name of `FRAMES`, or `custom`. */
  readonly name: string;
  /** The words, with `{text}` and `{question}` in their places. */
  readonly words: string;
  /** Whether thinking was asked for; null where the template knows of none. */
  readonly think: boolean | null;
  /** Tokens that it put in front of the text. */
  readonly tokens: number;
  /** Whether all of them are protected, in every head. */
  readonly protected: boolean;
}

/** What the cap of `maxCache` did; counts are sums over the answers, the rest the most of any. */
export interface MaxCacheReport extends CapFigures {
  /** Entries per head on average. */
  readonly asked: number;
  readonly rule: string;
  /** True when the cap left the context less than `keep` asked for. */
  readonly keepCapped: boolean;
}

/** `mean`: the mean largest mass a window query loses; `worst`: the importance below which entries go. */
export interface RiskReport {
  readonly kind: "mean" | "worst";
  readonly asked: number;
  /** `mean`: the risk at the budget found. */
  readonly reached: number | null;
  /** Times the context was read. */
  readonly passes: number;
  /** What is promised where importance is predicted by a gate: for texts like those held out, of at most their length. */
  readonly worstCase: (WorstCase & { readonly longer: boolean }) | null;
}

/** What only the caller knows. */
export interface ReportExtras {
  readonly keepAsked: string;
  readonly loadMs: number;
  readonly memory?: MemoryUse;
}

/** Gathers the report. Call it while the context is alive and after its last answer. */
export function reportOf(model: Model, context: Context, answers: readonly Answer[], extras: ReportExtras): Report {
  const { cache, policy, budget } = context;
  const { layers } = model.config;
  const total = reachableEntries(model.config, context.tokens);
  const kept = cache.entries(), changed = cache.biased > 0 || (context.merge?.merged ?? 0) > 0 || cache.thinned;
  const bytes = cache.bytes();
  const steps = answers.reduce((sum, each) => sum + Math.max(0, each.ids.length - 1), 0);
  const decode = answers.reduce((sum, each) => sum + each.ms.decodePerToken * Math.max(0, each.ids.length - 1), 0);
  return {
    answer: answers[0]?.answer ?? "",
    answers: answers.map(({ question, answer, thinking, finish }) => ({
      question,
      answer,
      thinking: thinking || null,
      finish,
    })),
    model: model.name,
    modelTitle: model.config.name,
    frame: frameReport(context),
    backend: model.backend.name,
    dense: model.dense.name,
    engines: { backend: model.backend.detail, dense: model.dense.detail },
    policy: { name: policy.name, ...policy.parameters },
    keep: {
      asked: policy.threshold === undefined ? extras.keepAsked : `threshold ${policy.threshold}`,
      tokensPerHead: budget.perHead,
      entries: cache.globalEntries(),
      everything: kept === total,
      least: context.leastKept,
    },
    windows: windowsReport(context),
    risk: riskReport(context),
    certificate: context.certificates ? certificateReport(context.certificates, changed) : null,
    effort: context.effort ?? null,
    refit: context.refit ?? null,
    merge: context.merge ?? null,
    firstGate: firstGateReport(context),
    selfGate: selfGateReport(context),
    keyChannels: context.keyChannels ?? null,
    foresight: foresightFigures(context.cache),
    window: { asked: budget.windowAsked, used: budget.window },
    sinks: budget.sinks,
    tokens: {
      context: context.tokens,
      reused: context.reused,
      question: answers.reduce((sum, each) => sum + each.questionTokens, 0),
      generated: answers.reduce((sum, each) => sum + each.ids.length, 0),
      replaced: context.replaced,
      leftOut: answers.reduce((sum, each) => sum + each.leftOut, 0),
    },
    loops: answers.filter(({ finish }) => finish === "loop").length,
    cache: {
      type: cache.type,
      kept,
      evicted: total - kept,
      bytes: bytes.live,
      allocatedBytes: bytes.allocated,
      fullBytes: fullBytes(context),
      peakBytes: Math.max(bytes.peak, context.risk?.peakBytes ?? 0),
      wasmHighWater: model.backend.memory().wasmBytes,
      perLayer: Array.from({ length: layers }, (_, layer) => layerReport(context, layer)),
    },
    positions: context.plan.positions,
    snapshot: context.snapshot ? { used: null, missed: null, ...context.snapshot } : null,
    health: answers.at(-1)?.health ?? healthOf(cache, model.config.contextLength),
    maxCache: maxCacheReport(context, answers),
    templateDate: context.frame.date ?? null,
    activationBytes: context.activationBytes,
    ms: {
      load: extras.loadMs,
      prefill: context.ms.prefill,
      evict: context.ms.evict,
      restore: context.ms.restore,
      question: answers.reduce((sum, each) => sum + each.ms.question, 0),
      decodePerToken: steps === 0 ? 0 : decode / steps,
    },
    memory: {
      rss: extras.memory?.rssBytes ?? null,
      peakRss: extras.memory?.peakRssBytes ?? null,
      weights: model.dense.weightBytes,
      cache: bytes.allocated,
    },
  };
}

function frameReport({ frame: { kind, words, thinking }, frameTokens, budget }: Context): FrameReport {
  const what = { kind, name: words.name, words: frameText(words), think: thinking?.asked ?? null };
  return { ...what, tokens: frameTokens, protected: budget.sinks >= frameTokens };
}

function maxCacheReport({ plan, keepCapped }: Context, answers: readonly Answer[]): MaxCacheReport | null {
  if (!plan.maxCache) return null;
  const figures = answers.flatMap((each) => each.maxCache ?? []);
  const sum = (of: (each: CapFigures) => number) => figures.reduce((all, each) => all + of(each), 0);
  const most = (of: (each: CapFigures) => number) => figures.reduce((all, each) => Math.max(all, of(each)), 0);
  return {
    asked: plan.maxCache.tokens,
    rule: plan.maxCache.rule.name,
    keepCapped,
    evictions: sum((each) => each.evictions),
    evictedEntries: sum((each) => each.evictedEntries),
    evictedFromContext: sum((each) => each.evictedFromContext),
    peakEntries: most((each) => each.peakEntries),
    peakBytes: most((each) => each.peakBytes),
    allocatedBytes: most((each) => each.allocatedBytes),
    stateBytes: most((each) => each.stateBytes),
    window: {
      asked: most((each) => each.window.asked),
      used: figures.reduce((all, each) => Math.min(all, each.window.used), most((each) => each.window.asked)),
    },
  };
}

function firstGateReport({ firstGate }: Context): FirstGateReport | null {
  if (!firstGate) return null;
  const { tokens, ms } = firstGate;
  return { tokens, ms, ...whetherStored(firstGate) };
}

function selfGateReport({ selfGate }: Context): SelfGateReport | null {
  if (!selfGate) return null;
  const { tokens, known, repeated } = selfGate;
  return { tokens, known, repeated, ...whetherStored(selfGate) };
}

function whetherStored(gate: { readonly stored: true } | NotKept) {
  return { stored: gate.stored, why: gate.stored ? null : gate.why };
}

function riskReport({ risk, tokens }: Context): RiskReport | null {
  if (!risk) return null;
  const { kind, limit: asked, reached = null, passes = 1, worstCase } = risk;
  const promised = worstCase ? { ...worstCase, longer: tokens > worstCase.textTokens } : null;
  return { kind, asked, reached, passes, worstCase: promised };
}

function windowsReport({ cache }: Context): WindowsReport | null {
  const { shape } = cache, { layers, windows = [] } = shape;
  const windowed = windows.filter((window, layer) => window > 0 && sourceOf(shape, layer) === layer).length;
  if (windowed === 0) return null;
  const entries = cache.entries() - cache.globalEntries();
  return { layers: windowed, of: layers, tokens: Math.max(...windows), entries };
}

/** Of all that could still be read, where nothing is evicted. */
function fullBytes({ cache, tokens }: Context): number {
  const { shape } = cache, layers = Array.from({ length: shape.layers }, (_, layer) => layer);
  return layers.reduce((sum, layer) => {
    return sum + layerEntries(shape, layer, tokens) * entryBytes(layerShape(shape, layer).headDim, cache.typeOf(layer));
  }, 0);
}

function layerReport(context: Context, layer: number): LayerReport {
  const { cache } = context, window = windowOf(cache.shape, layer);
  const { shape } = cache, source = sourceOf(shape, layer);
  if (source !== layer) return { window: window === Infinity ? null : window, kept: 0, evicted: 0, heads: [] };
  const heads = Array.from({ length: layerShape(shape, layer).kvHeads }, (_, head) => cache.length(layer, head));
  const kept = heads.reduce((sum, length) => sum + length, 0);
  const evicted = window === Infinity ? context.tokens * heads.length - kept : 0;
  return { window: window === Infinity ? null : window, kept, evicted, heads };
}
