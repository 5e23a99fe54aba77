/** The closing report, for people. */
import { DEFAULTS } from "../../model/defaults.ts";
import type { Report } from "../../model/report.ts";
import type { Finish } from "../../model/session.ts";
import { formatBytes, formatCount, formatMs, formatShare } from "./format.ts";

/** Why an answer ended before the model ended it. */
const CUT: Record<Finish, string> = {
  stop: "",
  length: "an answer was cut at --max-tokens",
  context: "an answer was cut where the model's trained context ends",
  interrupted: "an answer was interrupted",
  loop: "an answer was ended because it said one phrase over and over (--allow-loops lets it go on)",
};

/** How it was asked, where that is not the way of a chat. */
const FRAMED: Record<Report["frame"]["kind"], string> = {
  chat: "",
  plain: "plainly: the model's file has no chat template, so this may be a model that only goes on from texts",
  none: "nothing: the text was gone on with",
};

/** Which of the least amounts decided. */
function leastText({ tokensPerHead }: Report["keep"]): string {
  return tokensPerHead > DEFAULTS.leastKept
    ? `each token has ${DEFAULTS.leastPlaces} places on average: few heads of this model evict`
    : `at least ${formatCount(DEFAULTS.leastKept)} tokens per head stay`;
}

/** A few lines, most important first; ends with a line break. */
export function reportText(report: Report): string {
  const { cache, tokens, ms, keep, window } = report;
  const total = keep.entries + cache.evicted, { windows } = report;
  const lines = [
    ["context", `${formatCount(tokens.context)} tokens, ${report.model}`],
    ...(tokens.reused > 0 ? [["reused", reusedText(report)]] : []),
    [
      "kept",
      `${formatCount(keep.entries)} of ${formatCount(total)} entries (${formatShare(keep.entries, total)}), ` +
      `${formatCount(cache.evicted)} evicted by ${report.policy.name}` +
      (keep.everything ? " (the budget covers the whole context)" : "") +
      (keep.least ? `; by default ${leastText(keep)}` : ""),
    ],
    ...(report.frame.tokens > 0 && !keep.everything ? [["frame", frameText(report)]] : []),
    ...(windows ? [["windows", windowsText(windows)]] : []),
    ...(report.firstGate ? [["gate", firstGateText(report.firstGate)]] : []),
    ...(report.selfGate ? [["gate", selfGateText(report.selfGate)]] : []),
    ...(report.effort ? [["effort", `best for ${report.effort.bytes} of bytes: ${report.effort.policy}`]] : []),
    ...(report.refit ? [["refit", refitText(report.refit)]] : []),
    ...(report.merge ? [["merge", mergeText(report.merge)]] : []),
    ...(report.keyChannels ? [["channels", channelsText(report.keyChannels)]] : []),
    ...(report.foresight ? [["reads", foresightText(report.foresight)]] : []),
    ...(report.risk ? [["risk", riskText(report.risk, keep.tokensPerHead)]] : []),
    [
      "cache",
      `${formatBytes(cache.bytes)} of ${formatBytes(cache.fullBytes)}, ${
        formatBytes(cache.allocatedBytes)
      } allocated, ` +
      `peak ${formatBytes(cache.peakBytes)} while reading` + (cache.type === "f32" ? "" : `, stored as ${cache.type}`),
    ],
    ["health", healthText(report)],
    ["time", `read ${formatMs(ms.prefill)}, evict ${formatMs(ms.evict)}, ${speed(ms.decodePerToken)}`],
    ["engines", `kernels ${report.engines.backend}; dense ${report.engines.dense}`],
  ];
  const asked = FRAMED[report.frame.kind];
  if (asked !== "") lines.push(["asked", asked]);
  const cut = report.answers.filter(({ finish }) => finish !== "stop").map(({ finish }) => CUT[finish]);
  if (cut.length > 0) lines.push(["ended", [...new Set(cut)].join("; ")]);
  if (window.used !== window.asked) {
    lines.push(["window", `the last ${window.used} of ${window.asked} tokens were observed: the budget is small`]);
  }
  if (tokens.replaced > 0) {
    lines.push([
      "unknown",
      `${formatCount(tokens.replaced)} characters have no token in this model and were read as U+FFFD`,
    ]);
  }
  if (report.templateDate !== null) {
    lines.push(["date", `the chat template was told that today is ${report.templateDate}`]);
  }
  if (tokens.leftOut > 0) {
    lines.push(["left out", `${formatCount(tokens.leftOut)} control tokens of the answers: they are no text`]);
  }
  if (report.maxCache) lines.push(["cap", maxCacheText(report.maxCache)]);
  const { rss, peakRss } = report.memory;
  if (rss !== null) lines.push(["process", `${formatBytes(rss)} resident, ${formatBytes(peakRss ?? rss)} at most`]);
  return lines.map(([name, text]) => `${name.padEnd(8)} ${text}\n`).join("");
}

function frameText({ frame, keep }: Report): string {
  const count = `${formatCount(frame.tokens)} tokens in front of the text are the template's and the frame's words`;
  return frame.protected
    ? `${count}: they stay in every head`
    : `${count}: too many to protect in ${formatCount(keep.tokensPerHead)} per head`;
}

function windowsText({ layers, of, tokens, entries }: NonNullable<Report["windows"]>): string {
  return `${layers} of ${of} layers look back ${formatCount(tokens)} tokens only and hold ${formatCount(entries)} ` +
    `entries by themselves; the policy chose in the other ${of - layers}`;
}

/** What a refit did. */
export function refitText({ refit, heads, of, before, after, tokens, ms }: NonNullable<Report["refit"]>): string {
  const what = refit === "values" ? "values" : "biases and values";
  const won = heads === 0 ? "" : `: largest errors from ${before.toFixed(2)} to ${after.toFixed(2)} of an output`;
  return `${what} of ${heads} of ${of} heads, judged by queries of ${tokens} tokens held out${won}, ${formatMs(ms)}`;
}

/** What a merge did. */
export function mergeText({ merge, merged, lost, window, ms }: NonNullable<Report["merge"]>): string {
  const how = merge === "sum" ? "with their weight" : "as a mean";
  const rest = lost === 0 ? "" : `, ${formatCount(lost)} unseen by the last ${window} tokens were not`;
  return `${formatCount(merged)} evicted entries went into the nearest kept one ${how}${rest}, ${formatMs(ms)}`;
}

function firstGateText({ tokens, ms, stored, why }: NonNullable<Report["firstGate"]>): string {
  return `fitted for this model on ${formatCount(tokens)} tokens of built-in text, ${formatMs(ms)}; ` +
    (stored ? "kept for readings to come (--no-learn)" : `not kept: ${why}`);
}

function selfGateText({ tokens, known, repeated, stored, why }: NonNullable<Report["selfGate"]>): string {
  const begun = known > 0 ? `, begun with one of ${formatCount(known)} tokens` : "";
  const fitted = tokens > 0 ? `fitted on ${formatCount(tokens)} tokens of the text${begun}` : "not needed";
  return `${fitted}; the model repeated ${formatCount(repeated)} tokens; ` +
    (stored ? "kept for texts to come (--no-learn)" : `not kept: ${why}`);
}

/** What a loss of key channels did. */
export function channelsText({ channels, of, entries, recent, ms }: NonNullable<Report["keyChannels"]>): string {
  return `keys of ${
    formatCount(entries)
  } entries have ${channels} of ${of} channels left, the last ${recent} of each ` +
    `head all, ${formatMs(ms)}`;
}

function foresightText({ entries, of, channels, headDim }: NonNullable<Report["foresight"]>): string {
  return `each generated token ${formatCount(entries)} of ${
    formatCount(of)
  } entries a head, chosen by ${channels} of ` +
    `${headDim} channels; the others stay`;
}

function reusedText({ tokens, ms }: Report): string {
  const share = tokens.reused === tokens.context ? "all of them" : `${formatCount(tokens.reused)} tokens`;
  return `${share} from a snapshot, restored in ${formatMs(ms.restore)}`;
}

function riskText(risk: NonNullable<Report["risk"]>, tokensPerHead: number): string {
  const { kind, asked, reached, passes, worstCase } = risk;
  const budget = `${formatCount(tokensPerHead)} tokens per head`;
  if (worstCase) return `${predictedText(asked, worstCase)}, which left ${budget} on average`;
  if (kind === "worst") return `evicted what is less important than ${asked}, which left ${budget} on average`;
  return `${reached!.toPrecision(3)} of at most ${asked}, at ${budget}` +
    (passes > 1 ? `; the context was read ${passes} times (--max-cache-bytes)` : "");
}

function predictedText(asked: number, worst: NonNullable<NonNullable<Report["risk"]>["worstCase"]>): string {
  return `evicted what scores below ${worst.threshold.toFixed(2)}: nothing of importance ${asked} or more, in ` +
    `${formatShare(worst.coverage, 1)} of texts like the ${worst.texts} held out` +
    (worst.longer ? ` (this one is longer than their ${worst.textTokens} tokens: no promise)` : "");
}

function healthText({ health, positions }: Report): string {
  const { keptFraction, largestGap, position, trained, headsWithSinks, heads } = health;
  return `${formatShare(keptFraction, 1)} of all entries at the end, largest gap ${formatCount(largestGap)} tokens, ` +
    `position ${formatCount(position)} of ${formatCount(trained)} trained` +
    (positions === "rerotate" ? " (re-rotated)" : "") +
    `, first tokens in ${headsWithSinks} of ${heads} heads`;
}

function maxCacheText({ asked, rule, keepCapped, window, ...did }: NonNullable<Report["maxCache"]>): string {
  return `${formatCount(asked)} entries per head, ${formatCount(did.evictedEntries)} evicted by ${rule} in ` +
    `${did.evictions} rounds, ${formatCount(did.evictedFromContext)} of them context; ` +
    `peak ${formatBytes(did.peakBytes)} beside the context's cache` +
    (keepCapped ? "; the cap left the context less than --keep asked" : "") +
    (window.used < window.asked ? `; last ${window.used} tokens protected instead of ${window.asked}` : "");
}

function speed(msPerToken: number): string {
  return msPerToken === 0 ? "nothing decoded" : `${(1000 / msPerToken).toFixed(1)} tokens/s`;
}
