/** `palisade policies`: what there is to choose from. */
import { describePolicies } from "../../core/policy/about.ts";
import { stepRules } from "../../core/rules/registry.ts";
import { command } from "../command.ts";
import { EXIT, type Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { tableText } from "../print/table.ts";

const OPTIONS = {
  steps: { help: "the rules of --step-policy instead, which evict while decoding" },
  json: { help: "as JSON, with every parameter, its default and its range" },
} satisfies OptionTable;

type PoliciesOptions = Values<typeof OPTIONS>;

/** `palisade policies`. */
export const policiesCommand = command({
  options: OPTIONS,
  run: listPolicies,
});

/** Prints the registry as a table, or as JSON with parameters; `steps`: the rules that evict while decoding instead. */
function listPolicies(options: PoliciesOptions, io: Io): number {
  if (options.steps) return listStepRules(options, io);
  const policies = describePolicies();
  if (options.json) {
    const plain = policies.map(({ name, summary, paper, source, parameters, reference }) => ({
      name,
      summary,
      paper,
      source,
      parameters,
      reference: reference ?? null,
    }));
    printJson(io, "policies", plain);
    return EXIT.ok;
  }
  const rows = policies.map(({ name, summary, paper, source, reference }) => [
    reference ? `${name}\n${name}@reference` : name,
    summary,
    paper,
    source,
  ]);
  const table = tableText(["policy", "what it keeps", "paper", "source"], rows, {
    widths: [26, 30, 24, 46],
    rules: true,
  });
  io.out(`${table}\n`);
  io.out('Parameters go in brackets, policies nest: --policy "adakv(snapkv, safeguard=0.2)"; --json lists them all.\n');
  return EXIT.ok;
}

function listStepRules(options: PoliciesOptions, io: Io): number {
  if (options.json) {
    const plain = stepRules.map(({ name, summary, paper, difference }) => ({ name, summary, paper, difference }));
    printJson(io, "policies", plain);
    return EXIT.ok;
  }
  const rows = stepRules.map(({ name, summary, paper, difference }) => [name, summary, paper, difference]);
  const head = ["rule", "what it keeps", "paper", "what ours does otherwise"];
  io.out(`${tableText(head, rows, { widths: [18, 32, 26, 40], rules: true })}\n`);
  return EXIT.ok;
}
