/** Small wrongs in the core that its tests must notice. Each is one replacement in one file. */
export interface Mutant {
  /** What is wrong with it, in a few words. */
  readonly name: string;
  readonly file: string;
  /** Must occur exactly once. */
  readonly find: string;
  readonly replace: string;
  /** Test files under `tests/`, without `_test.ts`, that are to kill it. */
  readonly tests: readonly string[];
}

const SELECT = ["core/select"], OBSERVE = ["core/observe"], CERTIFICATE = ["core/certificate"];

export const MUTANTS: readonly Mutant[] = [
  {
    name: "the defensive maximum is a mean",
    file: "core/measure/observe.ts",
    find:
      "if (this.#pooledMax && !(importance <= this.#pooledMax[first + i])) this.#pooledMax[first + i] = importance;",
    replace: "if (this.#pooledMax) this.#pooledMax[first + i] += importance / (this.#group * this.#window);",
    tests: ["core/fragility"],
  },
  {
    name: "the floor is dropped",
    file: "core/worst_case/risk.ts",
    find: "Math.max(pooledMax[i], floor)",
    replace: "pooledMax[i]",
    tests: OBSERVE,
  },
  {
    name: "the floor is the layer's mean, not the head's",
    file: "core/worst_case/risk.ts",
    find:
      "const start = head * prefixLength;\n    let sum = 0;\n    for (let i = start; i < start + prefixLength; i++) sum += pooledMax[i];\n    const floor = sum / prefixLength;",
    replace:
      "const start = head * prefixLength;\n    let sum = 0;\n    for (let i = 0; i < pooledMax.length; i++) sum += pooledMax[i];\n    const floor = sum / pooledMax.length;",
    tests: OBSERVE,
  },
  {
    name: "the window is shifted by one",
    file: "core/measure/observe.ts",
    find: "const visible = length - window + t + 1, ",
    replace: "const visible = length - window + t, ",
    tests: OBSERVE,
  },
  {
    name: "the pooling divisor is what lies inside",
    file: "core/measure/pool.ts",
    find: "to[i] = sum / kernel;",
    replace: "to[i] = sum / (Math.min(length - 1, i + reach) - Math.max(0, i - reach) + 1);",
    tests: OBSERVE,
  },
  {
    name: "pooled rows are not scaled back to their mass",
    file: "core/measure/observe.ts",
    find: "const scale = sum === 0 ? 0 : mass / sum;",
    replace: "const scale = 1;",
    tests: OBSERVE,
  },
  {
    name: "a row without mass divides by zero",
    file: "core/measure/observe.ts",
    find: "const scale = sum === 0 ? 0 : mass / sum;",
    replace: "const scale = mass / sum;",
    tests: OBSERVE,
  },
  {
    name: "logits are not scaled by the head's width",
    file: "core/measure/attention.ts",
    find: "const scale = 1 / Math.sqrt(headDim);",
    replace: "const scale = 1;",
    tests: OBSERVE,
  },
  {
    name: "among equals the higher index stays",
    file: "core/select/select.ts",
    find: "for (let i = start; i < end; i++) {",
    replace: "for (let i = end - 1; i >= start; i--) {",
    tests: SELECT,
  },
  {
    name: "the second key is not asked",
    file: "core/select/select.ts",
    find: "if (second) writeKeys(second, pool.second!, at);",
    replace: "",
    tests: SELECT,
  },
  {
    name: "protected entries are like any other",
    file: "core/select/select.ts",
    find: "if (protectedEntries) pool.protectedEntries!.set(protectedEntries, at);",
    replace: "",
    tests: SELECT,
  },
  {
    name: "too many protected entries: the first of them stay",
    file: "core/select/select.ts",
    find: "found <= count ? raised : ",
    replace: "found >= 0 ? raised : ",
    tests: SELECT,
  },
  {
    name: "NaN wins",
    file: "core/select/select.ts",
    find: "return LOWEST;",
    replace: "return HIGHEST;",
    tests: SELECT,
  },
  {
    name: "-0 is below +0",
    file: "core/select/select.ts",
    find: " : magnitude === 0 ? 0 : ~magnitude",
    replace: " : ~magnitude",
    tests: SELECT,
  },
  {
    name: "the sinks are forgotten",
    file: "core/select/protect.ts",
    find: "    mask.fill(1, head * length, head * length + sinks);\n",
    replace: "",
    tests: ["core/laws"],
  },
  {
    name: "the window is not protected",
    file: "core/select/protect.ts",
    find: "    mask.fill(1, (head + 1) * length - window, (head + 1) * length);\n",
    replace: "",
    tests: ["core/laws"],
  },
  {
    name: "the budget is one short",
    file: "core/select/budget.ts",
    find: "Math.floor(product + SLACK)",
    replace: "Math.floor(product + SLACK) - 1",
    tests: ["core/budget"],
  },
  {
    name: "a budget of 28.999… is 28",
    file: "core/select/budget.ts",
    find: "Math.floor(product + SLACK)",
    replace: "Math.floor(product)",
    tests: ["core/budget"],
  },
  {
    name: "the sinks shrink before the window",
    file: "core/select/budget.ts",
    find: "Math.min(window, Math.max(1, perHead - sinks))",
    replace: "Math.min(window, perHead)",
    tests: ["core/budget"],
  },
  {
    name: "joint layers drop one too many on the way",
    file: "core/select/joint.ts",
    find: "this.#shrink(total) : []",
    replace: "this.#shrink(total - 1) : []",
    tests: ["core/joint"],
  },
  {
    name: "a layer that comes late is put last",
    file: "core/select/joint.ts",
    find: "added, this.#start(layer))",
    replace: "added, this.#entries.keys.length)",
    tests: ["core/joint"],
  },
  {
    name: "stage 1 takes the entry that crosses the threshold",
    file: "core/measure/coverage.ts",
    find: "if (running / total >= threshold) return c;",
    replace: "if (running / total >= threshold) return c + 1;",
    tests: OBSERVE,
  },
  {
    name: "the cap on stage 1 goes negative",
    file: "core/policies/defensive.ts",
    find: "return Math.max(0, Math.floor(cap",
    replace: "return Math.max(-Infinity, Math.floor(cap",
    tests: ["core/policies"],
  },
  {
    name: "value norms are not shared out over the heads",
    file: "core/measure/value_share.ts",
    find: "return each((_, i) => sumOf(norms, i, length, kvHeads));",
    replace: "return each(() => 1);",
    tests: ["core/golden"],
  },
  {
    name: "no head is sure of its safeguard",
    file: "core/policies/adakv.ts",
    find: "Math.trunc((layer.counts?.[head] ?? perHead) * share)",
    replace: "0",
    tests: ["core/policies"],
  },
  {
    name: "heads compete where each has its own budget",
    file: "core/select/allocate.ts",
    find: "segments.map((segment, head) => ({ segments: [segment], count: layer.counts?.[head] ?? budget.perHead }))",
    replace: "[{ segments, count: layer.counts?.reduce((a, b) => a + b, 0) ?? budget.perHead * segments.length }]",
    tests: ["core/policies"],
  },
  {
    name: "defensive-risk carries a floor",
    file: "core/policies/defensive_risk.ts",
    find: "scores: appendWindow(pooledMax, kvHeads, window, largest(pooledMax)),",
    replace: "scores: appendWindow(pooledMax.map((x) => Math.max(x, 0.3)), kvHeads, window, largest(pooledMax)),",
    tests: ["core/optimality"],
  },
  {
    name: "the certificate forgets the largest evicted risk",
    file: "core/worst_case/certificate_tracker.ts",
    find: "this.#largestRisk = Math.max(this.#largestRisk, this.#importance[i]);",
    replace: "this.#largestRisk = this.#importance[i];",
    tests: ["core/optimality", "core/certificate"],
  },
  {
    name: "the certificate's sum is a maximum",
    file: "core/worst_case/certificate_tracker.ts",
    find: "this.#riskSum += this.#importance[i];",
    replace: "this.#riskSum = Math.max(this.#riskSum, this.#importance[i]);",
    tests: ["core/optimality"],
  },
  {
    name: "the evicted mass misses the last entry that a query sees",
    file: "core/worst_case/certificate.ts",
    find: "positions[seen] <= last; seen++",
    replace: "positions[seen] < last; seen++",
    tests: CERTIFICATE,
  },
  {
    name: "the output bound forgets what is kept",
    file: "core/worst_case/certificate.ts",
    find: "mass * (evicted + kept)",
    replace: "mass * evicted",
    tests: CERTIFICATE,
  },
  {
    name: "evicted values are forgotten",
    file: "core/worst_case/certificate_tracker.ts",
    find: "this.#evictedNorm = Math.max(this.#evictedNorm, this.#norms[i]);",
    replace: "",
    tests: CERTIFICATE,
  },
  {
    name: "a mass that is not known looks safe",
    file: "core/worst_case/certificate.ts",
    find: "if (!(Math.abs(logSum) <= LARGEST_LOG_SUM)) return NaN;",
    replace: "",
    tests: CERTIFICATE,
  },
  {
    name: "a risk is the mean over the window's queries",
    file: "core/worst_case/risk_budget.ts",
    find: "largest[c] = Math.max(largest[c], lost(row, kept[kvHead], visible, whole))",
    replace: "largest[c] += lost(row, kept[kvHead], visible, whole) / window",
    tests: ["core/risk_budget"],
  },
  {
    name: "the search stops a budget too late",
    file: "core/worst_case/risk_budget.ts",
    find: "while (best.tokens - below > 1) {",
    replace: "while (best.tokens - below > 2) {",
    tests: ["core/risk_budget"],
  },
  {
    name: "a threshold evicts what equals it",
    file: "core/select/threshold.ts",
    find: "!(scores[i] < threshold)",
    replace: "!(scores[i] <= threshold)",
    tests: ["core/risk_budget"],
  },
  {
    name: "a conformal margin forgets the new text",
    file: "core/worst_case/conformal.ts",
    find: "Math.ceil((sorted.length + 1) * coverage - 1e-9)",
    replace: "Math.ceil(sorted.length * coverage - 1e-9)",
    tests: ["core/conformal"],
  },
  {
    name: "the margin is taken off the wrong side",
    file: "core/worst_case/conformal.ts",
    find: "Math.log(threshold) - margin",
    replace: "Math.log(threshold) + margin",
    tests: ["core/conformal"],
  },
  {
    name: "predicted scores overwrite the first entries",
    file: "core/rules/state.ts",
    find: "this.#statistics[0].set(predicted, known);",
    replace: "this.#statistics[0].set(predicted, 0);",
    tests: ["core/rules"],
  },
  {
    name: "what soft tokens attend to is not pooled",
    file: "core/policies/judge_q.ts",
    find: "poolHeads(softTokens, kvHeads, kernel)",
    replace: "poolHeads(softTokens, kvHeads, 1)",
    tests: ["core/policies"],
  },
];
