/** The policy table of docs/policies.md, from what policies say of themselves. `deno task docs` writes it. */
import { describePolicies } from "../core/policy/about.ts";
import { markdownTable } from "./markdown.ts";

/** Markdown, columns padded as `deno fmt` does, without a line break at the end. */
export function policyTable(): string {
  const rows = describePolicies().map(({ name, over, summary, parameters, paper, reference }) => [
    `\`${over ? `${name}(${over})` : name}\``,
    summary,
    parameters.map((each) => `\`${each.name}=${each.default}\``).join(" "),
    reference ? "yes" : "",
    paper,
  ]);
  return markdownTable(["policy", "what it keeps", "parameters", "`@reference`", "paper"], rows);
}
