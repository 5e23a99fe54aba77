/** `palisade policies`: what there is to choose from. */
import { policies } from "../../core/policy/registry.ts";
import { stepRules } from "../../core/rules/registry.ts";
import Table from "cli-table3";
import { EXIT, type Io } from "../io.ts";

/** Prints the registry as a table, or as JSON with parameters; `steps`: the rules that evict while decoding instead. */
export function listPolicies(options: { json?: boolean; steps?: boolean }, io: Io): number {
  if (options.steps) return listStepRules(options, io);
  if (options.json) {
    const plain = policies.map(({ name, summary, paper, source, parameters, reference }) => ({
      name,
      summary,
      paper,
      source,
      parameters,
      reference: reference ?? null,
    }));
    io.out(`${JSON.stringify(plain, null, 2)}\n`);
    return EXIT.ok;
  }
  const table = new Table({
    head: ["policy", "what it keeps", "paper", "source"],
    style: { head: [], border: [] },
    colWidths: [20, 38, 26, 30],
    wordWrap: true,
  });
  for (const { name, summary, paper, source, reference } of policies) {
    table.push([reference ? `${name}\n${name}@reference` : name, summary, paper, source]);
  }
  io.out(`${table.toString()}\n`);
  io.out('Parameters go in brackets, policies nest: --policy "adakv(snapkv, safeguard=0.2)"; --json lists them all.\n');
  return EXIT.ok;
}

function listStepRules(options: { json?: boolean }, io: Io): number {
  if (options.json) {
    const plain = stepRules.map(({ name, summary, paper, difference }) => ({ name, summary, paper, difference }));
    io.out(`${JSON.stringify(plain, null, 2)}\n`);
    return EXIT.ok;
  }
  const table = new Table({
    head: ["rule", "what it keeps", "paper", "what ours does otherwise"],
    style: { head: [], border: [] },
    colWidths: [16, 34, 26, 38],
    wordWrap: true,
  });
  for (const { name, summary, paper, difference } of stepRules) table.push([name, summary, paper, difference]);
  io.out(`${table.toString()}\n`);
  return EXIT.ok;
}
