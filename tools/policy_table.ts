/** The policy table of docs/policies.md, from the registry. `deno task docs` writes it. */
import { policies } from "../core/policy/registry.ts";
import { markdownTable } from "./markdown.ts";

/** Markdown, columns padded as `deno fmt` does, without a line break at the end. */
export function policyTable(): string {
  const rows = policies.map(({ name, over, summary, parameters, paper, reference }) => [
    `\`${over ? `${name}(${over})` : name}\``,
    summary,
    parameters.map((each) => `\`${each.name}=${each.default}\``).join(" "),
    reference ? "yes" : "",
    paper,
  ]);
  return markdownTable(["policy", "what it keeps", "parameters", "`@reference`", "paper"], rows);
}
