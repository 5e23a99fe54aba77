/** A read and evicted context: what `openContext` and `Model.restore` give, and what they make it of. */
import type { RaggedCache } from "../core/cache/ragged.ts";
import type { LayerCertificate } from "../core/worst_case/certificate.ts";
import type { Budget, Policy } from "../core/policy/policy.ts";
import { type Answer, answer, type AskOptions, type DecodePlan } from "./decode/answer.ts";
import type { FirstGateFigures } from "./gate/first.ts";
import type { Learning } from "./gate/learned.ts";
import type { WorstCase } from "./gate/worst_case.ts";
import type { Model } from "./model.ts";
import type { RiskFigures } from "./read/at_risk.ts";
import type { EffortFigures } from "./read/effort.ts";
import type { KeyChannelFigures } from "./read/key_channels.ts";
import type { MergeFigures } from "./read/merge.ts";
import type { RefitFigures } from "./read/refit.ts";
import type { Fitted } from "./read/replay.ts";
import type { Risk } from "./read/risk_options.ts";
import { CloakedRest } from "./snapshot/cloak/at_rest.ts";
import type { ByteSink } from "./snapshot/bytes.ts";
import type { ReadingFacts } from "./snapshot/identity.ts";
import type { TokenRecord } from "./snapshot/tokens.ts";
import { saveContext, type SaveOptions } from "./snapshot/save.ts";
import type { ChatFrame } from "./text/prompt.ts";

/** What became of a gate that was fitted while reading. */
export type SelfGateFigures = Omit<Fitted, "gate"> & Learning;

/** A read and evicted context. */
export interface Context extends Disposable {
  readonly cache: RaggedCache;
  readonly policy: Policy;
  readonly budget: Budget;
  /** What stands around text and question. */
  readonly frame: ChatFrame;
  /** Context tokens that were read, template included. */
  readonly tokens: number;
  /** Those of them that came from a snapshot instead of being read. */
  readonly reused: number;
  /** Characters of the text that the model has no token for; it read U+FFFD in their place. */
  readonly replaced: number;
  readonly activationBytes: number;
  /** Milliseconds of reading, of evicting, and of restoring from a snapshot. */
  readonly ms: { readonly prefill: number; readonly evict: number; readonly restore: number };
  /** How it decodes: positions and cap. */
  readonly plan: DecodePlan;
  /** True when the cap left the context less than `keep` asked for. */
  readonly keepCapped: boolean;
  /** True when nothing was asked for and the least decided (`model/read/least_kept.ts`), not `DEFAULTS.keep`. */
  readonly leastKept: boolean;
  /** Tokens that the frame puts in front of the text; protected in every head where `budget.sinks` reach as far. */
  readonly frameTokens: number;
  /** Where snapshots were looked for: which one was used, or why none was. */
  readonly snapshot?: { readonly used: string } | { readonly missed: string };
  /** The limit that took the place of `keep`; with `risk`, what the search did. */
  readonly risk?: Risk & Partial<RiskFigures> & { readonly worstCase?: WorstCase };
  /** One per layer, when asked: the cache as it was when the context had been read. */
  readonly certificates?: readonly LayerCertificate[];
  /** What was chosen, where `effort` was `best`; as what follows, also of a context that was restored. */
  readonly effort?: EffortFigures;
  /** What a refit did, where one was asked for and something was evicted. */
  readonly refit?: RefitFigures;
  /** What a merge did, where one was asked for and something was evicted. */
  readonly merge?: MergeFigures;
  /** What the model's first gate took, where it was fitted before this text was read. */
  readonly firstGate?: FirstGateFigures;
  /** What a gate was fitted on while reading, where one was (`self-gate`), and whether it is kept for texts to come. */
  readonly selfGate?: SelfGateFigures;
  /** What was left out of the keys, where that was asked for. */
  readonly keyChannels?: KeyChannelFigures;
  /** Answers from the kept entries; afterwards the cache is as it was before the question. */
  ask(question: string, options?: AskOptions): Promise<Answer>;
  /**
   * Writes all of it into a sink as a snapshot (docs/snapshots.md), and commits the sink; not while a question is being
   * answered. A snapshot is the text: whoever has it can find out what was read.
   * @throws PalisadeError input `policy.unnamed`, `snapshot.no-text`; what the sink throws, and the sink is aborted then.
   */
  save(sink: ByteSink, options?: SaveOptions): Promise<void>;
}

/** What a context is made of. */
export interface ContextState extends Omit<Context, "ask" | "save" | keyof Disposable> {
  /** What decided what was kept, besides model and tokens; found out when it is first asked for. */
  readonly facts: () => Promise<ReadingFacts>;
  readonly read: TokenRecord;
  /** The gate's scores of the entries, row by row, `[layers · kvHeads][entries]`, where they were asked for. */
  readonly predicted?: readonly Float32Array[];
  /** What people call the text. */
  readonly label: string;
  /** The name of what the reading left for texts to come. */
  readonly left?: string;
  /** What reading cost when it was read, milliseconds. */
  readonly cost: { readonly prefill: number; readonly evict: number };
}

/** The context of a state, which it takes over; `rest`: where its rows wait between questions, if not in the backend. */
export function contextOf(loaded: Model, state: ContextState, rest?: CloakedRest): Context {
  const { facts: _, read: __, predicted: ___, label: ____, cost: _____, left: ______, ...shown } = state;
  const model = { ...loaded, frame: state.frame };
  const awake = <T>(work: () => Promise<T>) => rest ? rest.awake(work) : work();
  const context: Context = {
    ...shown,
    ask: (question, options = {}) => awake(() => answer(model, state.cache, question, options, state.plan)),
    save: (sink, options = {}) => awake(() => saveContext(model, state, sink, options)),
    [Symbol.dispose]: () => state.cache[Symbol.dispose](),
  };
  insides.set(context, { model, state, awake });
  return context;
}

/**
 * Opens a context that outlasts its device. Where that fails, in the middle or later, and the model has another
 * (`Model.recover`), `open` opens the context again there. A question is then asked again, unless some of its answer was
 * told already; the next one is answered either way. A sink may have got a part of what failed to be saved: saving fails,
 * and works when it is asked for again.
 */
export async function lasting(loaded: Model, open: () => Promise<Context>): Promise<Context> {
  if (!loaded.recover) return await open();
  const recover = async (error: unknown) => {
    if (!(await loaded.recover!(error))) throw error;
  };
  let context: Context;
  try {
    context = await open();
  } catch (error) {
    await recover(error);
    return await open();
  }
  return recovering(context, recover, open);
}

/** `recover` throws what no other device helps against. */
function recovering(
  first: Context,
  recover: (error: unknown) => Promise<void>,
  reopen: () => Promise<Context>,
): Context {
  let current = first;
  const again = async () => {
    const { ask: _, save: __, [Symbol.dispose]: ___, ...shown } = current = await reopen();
    insides.set(context, insideOf(current));
    Object.assign(context, shown);
  };
  /** After it `current` is another where the device has failed. */
  const moved = async (asked: Context, error: unknown) => {
    await recover(error);
    if (asked !== current) return;
    asked[Symbol.dispose]();
    await again();
  };
  const context: Context = {
    ...first,
    async ask(question, options = {}) {
      const { told, listening } = listener(options), asked = current;
      try {
        return await asked.ask(question, listening);
      } catch (error) {
        await moved(asked, error);
        if (told()) throw error;
        return await current.ask(question, options);
      }
    },
    async save(sink, options) {
      const asked = current;
      try {
        return await asked.save(sink, options);
      } catch (error) {
        await moved(asked, error);
        throw error;
      }
    },
    [Symbol.dispose]: () => current[Symbol.dispose](),
  };
  insides.set(context, insideOf(first));
  return context;
}

/** The same options, and whether anything of an answer was told through them. */
function listener(options: AskOptions): { told(): boolean; listening: AskOptions } {
  const { onText, onThinking } = options;
  let heard = false;
  const hear = (tell: ((text: string) => void) | undefined) =>
    tell && ((text: string) => {
      heard ||= text !== "";
      tell(text);
    });
  return { told: () => heard, listening: { ...options, onText: hear(onText), onThinking: hear(onThinking) } };
}

/** What a context is made of, for who keeps it: `model/snapshot/cache.ts`. */
const insides = new WeakMap<Context, Inside>();

interface Inside {
  readonly model: Model;
  readonly state: ContextState;
  /** Does something with the rows in the backend, where they may not be otherwise. */
  awake<T>(work: () => Promise<T>): Promise<T>;
}

/** @throws TypeError for what is no context of {@link contextOf}. */
export function insideOf(context: Context): Inside {
  const inside = insides.get(context);
  if (!inside) throw new TypeError("Want a context as openContext() gives it");
  return inside;
}

/**
 * The same context, its rows cloaked while nobody asks; it takes over the one given, which is disposed of when this fails.
 * @throws PalisadeError input `cloak.range`, resources `seal.no-crypto`.
 */
export async function laidToRest(context: Context): Promise<Context> {
  const { model, state } = insideOf(context);
  try {
    return contextOf(model, state, await CloakedRest.of(state.cache));
  } catch (error) {
    context[Symbol.dispose]();
    throw error;
  }
}
