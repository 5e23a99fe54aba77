import assert from "node:assert/strict";
import { policyText } from "../../core/policy/policy_text.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";

const NESTED = [
  "adakv(snapkv(kernel=7), safeguard=0.3)",
  "adakv@reference(snapkv(kernel=7))",
  "chunkkv(adakv(snapkv(window=16)))",
  "snapkv(window=16)",
  'headkv(file="a, \\"b\\" \\\\ c.json")',
  'headkv(file="two\nlines.json")',
  "gate(combine=risk, norm=heads)",
];

Deno.test("policyText() names every policy so that it is the same one again", () => {
  const texts = policies.flatMap(({ name, reference }) => [name, ...(reference ? [`${name}@reference`] : [])]);
  for (const text of [...texts, ...NESTED]) {
    const policy = resolvePolicy(text), again = resolvePolicy(policyText(policy));
    for (
      const field of ["name", "parameters", "needs", "allocate", "evicts", "sinks", "window", "arithmetic"] as const
    ) {
      assert.deepEqual(again[field], policy[field], `${text}: ${field}`);
    }
    assert.equal(policyText(again), policyText(policy), "the text stays as it is from then on");
  }
});

Deno.test("policyText() quotes what the grammar couldn't read otherwise, and nothing else", () => {
  const cases: [string, string][] = [
    ["snapkv(window=16)", "snapkv(window=16,kernel=5,sinks=4)"],
    ["adakv(snapkv(kernel=7), safeguard=0.3)", "adakv(snapkv(window=32,kernel=7,sinks=4),safeguard=0.3)"],
    ['knorm(rows="k=int8,v=int4", merge=sum)', 'knorm(sinks=4,window=32,merge=sum,rows="k=int8,v=int4")'],
    ["headkv(file=a/b_c.json)", "headkv(file=a/b_c.json,beta=1.2,window=32,kernel=5,sinks=4)"],
    [
      'headkv(file="a, \\"b\\" \\\\ c.json")',
      'headkv(file="a, \\"b\\" \\\\ c.json",beta=1.2,window=32,kernel=5,sinks=4)',
    ],
  ];
  for (const [text, wanted] of cases) assert.equal(policyText(resolvePolicy(text)), wanted);
});

Deno.test("policyText() refuses a policy that nobody could name again", () => {
  const own = { ...resolvePolicy("snapkv"), name: "mine" };
  assert.throws(() => policyText(own), { code: "policy.unnamed" });
});
