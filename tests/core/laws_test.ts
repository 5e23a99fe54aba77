/** Every policy of the registry under every law; who is exempt from which, and why, stands beside the law. */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Keep } from "../../core/select/budget.ts";
import { PalisadeError } from "../../core/errors.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { type DumpCase, dumpCases, evenShare, FLAVOURS, makeDump } from "../_helper/dumps.ts";
import {
  answersTheSame,
  evict,
  followsItsHeads,
  followsItsLayers,
  ignoresScale,
  isNested,
  keepsItsBudget,
  keepsTheProtected,
  onlyReads,
  SMALL_POLICIES,
  type SmallPolicy,
} from "../_helper/laws.ts";
import { holds } from "../_helper/property.ts";

/** Runs of one law over all policies together. */
const RUNS = 10_000;

/** Policies a law is not for, by name, with the reason. */
type Exempt = Readonly<Record<string, string>>;

const FORCED = "the cap on stage 1 rises in all heads at once, the budget by one entry";

/** Two budgets less than a token per head apart. */
function fractions({ length }: DumpCase, tokens: number): [Keep, Keep] {
  return [{ fraction: tokens / length }, { fraction: Math.min(1, (tokens + 0.4) / length) }];
}

interface Law {
  readonly name: string;
  readonly exempt: Exempt;
  readonly check: (policy: SmallPolicy, each: DumpCase, tokens: number) => void;
  /** Ties are broken by index, so a law about reordering is for inputs without ties. */
  readonly distinct?: true;
}

const LAWS: readonly Law[] = [
  {
    name: "keeps exactly its budget, ascending and unique",
    exempt: {},
    check: (policy, each, tokens) => keepsItsBudget(policy, each, { tokens }),
  },
  {
    name: "keeps sinks and window",
    exempt: {},
    check: (policy, each, tokens) => keepsTheProtected(policy, each, { tokens }),
  },
  {
    name: "leaves its inputs alone",
    exempt: {},
    check: (policy, each, tokens) => onlyReads(policy, each, { tokens }),
  },
  {
    name: "answers the same twice",
    exempt: {},
    check: (policy, each, tokens) => answersTheSame(policy, each, { tokens }),
  },
  {
    name: "is nested in a budget of tokens",
    exempt: {},
    check: (policy, each, tokens) =>
      isNested(policy, each, [{ tokens }, { tokens: Math.min(tokens + 1, each.length) }]),
  },
  {
    name: "is nested in a fraction",
    exempt: { defensive: FORCED, "layer-defensive": FORCED },
    check: (policy, each, tokens) => isNested(policy, each, fractions(each, tokens)),
  },
  {
    name: "follows its KV heads where they go",
    exempt: { random: "draws by place" },
    check: (policy, each, tokens) => followsItsHeads(policy, each, { tokens }),
    distinct: true,
  },
  {
    name: "follows its layers where they go",
    exempt: { random: "draws by place", pyramidkv: "gives lower layers more" },
    check: (policy, each, tokens) => followsItsLayers(policy, each, { tokens }),
    distinct: true,
  },
  {
    name: "does not care how large values and Wo are",
    exempt: { capkv: "measures values against one, the identity's" },
    check: (policy, each, tokens) => ignoresScale(policy, each, { tokens }),
    distinct: true,
  },
];

/** Two KV heads and random floats: sums over heads are the same in either order, and no two scores are equal. */
const distinctCases = fc.record({
  seed: fc.integer({ min: 0, max: 1e9 }),
  length: fc.integer({ min: 1, max: 12 }),
  group: fc.integer({ min: 1, max: 2 }),
}).map(({ seed, ...sizes }) => makeDump(seed, { ...sizes, kvHeads: 2, layers: 2 }, "plain"));

/** Of the context: next to nothing, all, anything. */
const share = fc.oneof(
  { arbitrary: fc.constantFrom(0, 1), weight: 1 },
  { arbitrary: evenShare, weight: 4 },
);

for (const { name, exempt, check, distinct } of LAWS) {
  const bound = SMALL_POLICIES.filter((policy) => !(policy.name in exempt));
  const names = Object.keys(exempt).join(" and ");
  Deno.test(`every policy${names === "" ? "" : ` but ${names}`} ${name}`, () => {
    const input = fc.tuple(
      fc.constantFrom(...bound),
      distinct ? distinctCases : dumpCases(14, FLAVOURS),
      share,
    );
    holds(
      fc.property(input, ([policy, each, share]) => {
        const tokens = 1 + Math.round(share * (each.length - 1));
        try {
          check(policy, each, tokens);
        } catch (error) {
          throw new Error(`${policy.text} keeping ${tokens} of a ${each.made}: ${(error as Error).message}`);
        }
      }),
      RUNS,
    );
  });
}

Deno.test("the laws know every policy they exempt", () => {
  for (const { exempt } of LAWS) {
    for (const name of Object.keys(exempt)) assert.ok(policies.some((policy) => policy.name === name), name);
  }
});

Deno.test("defensive and layer-defensive are not nested in a fraction: the exemption is needed", () => {
  for (const name of ["defensive", "layer-defensive"]) {
    const [policy] = SMALL_POLICIES.filter((each) => each.name === name);
    const broken = Array.from({ length: 300 }, (_, seed) => seed).some((seed) => {
      const each = makeDump(seed, { length: 14, kvHeads: 2, group: 1, layers: 2 });
      try {
        for (let tokens = 3; tokens < 14; tokens++) isNested(policy, each, fractions(each, tokens));
        return false;
      } catch {
        return true;
      }
    });
    assert.ok(broken, name);
  }
});

Deno.test("every policy refuses a budget of nothing with keep.range, and keeps all at the whole context", () => {
  const each = makeDump(1, { length: 9, kvHeads: 2, group: 1, layers: 2 });
  for (const policy of SMALL_POLICIES) {
    const refused = (error: unknown) => error instanceof PalisadeError && error.code === "keep.range";
    assert.throws(() => evict(policy, each, { tokens: 0 }), refused);
    for (const head of evict(policy, each, { tokens: 9 }).kept.flat()) assert.equal(head.length, 9);
  }
});

Deno.test("every policy reads a context one token longer than its window", () => {
  for (const policy of SMALL_POLICIES) {
    const { window } = resolvePolicy(policy.text);
    for (const flavour of FLAVOURS) {
      const each = makeDump(7, { length: window + 1, kvHeads: 1, group: 1, layers: 1 }, flavour);
      for (let tokens = 1; tokens <= window + 1; tokens++) {
        keepsItsBudget(policy, each, { tokens });
        keepsTheProtected(policy, each, { tokens });
      }
    }
  }
});
