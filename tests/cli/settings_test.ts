/** Settings: the line, variables, the project's file, the user's file, defaults, in this order, for every option. */
import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { leaves } from "../../cli/command.ts";
import type { ShownConfig } from "../../cli/json/outputs.ts";
import { allCommands } from "../../cli/list.ts";
import { flagOf, isRepeatable, isSwitch, keyOf, type OptionSpec } from "../../cli/options.ts";
import { withCommon } from "../../cli/parse.ts";
import { sectionOf } from "../../cli/settings/keys.ts";
import { variablesOf } from "../../cli/settings/variables.ts";
import { type CliResult, palisade } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";

const root = await testFolder("settings");
const commands = leaves(await allCommands()).map(withCommon);

interface Setup {
  /** Files of the project: names below its folder, contents. */
  readonly project?: Readonly<Record<string, string>>;
  readonly user?: Readonly<Record<string, string>>;
  readonly variables?: Readonly<Record<string, string>>;
  /** The current folder below the project's. */
  readonly below?: string;
}

let number = 0;

/** Runs palisade in a project of its own, with nothing else around. */
async function inProject(parameters: readonly string[], setup: Setup): Promise<CliResult & { folder: string }> {
  const place = join(root, String(number++)), folder = join(place, "project"), user = join(place, "user", "palisade");
  const { project = {}, user: own = {}, variables = {}, below = "" } = setup;
  for (const each of [join(folder, below), user]) await mkdir(each, { recursive: true });
  for (const [name, text] of Object.entries(project)) {
    if (name.endsWith("/")) await mkdir(join(folder, name));
    else await writeFile(join(folder, name), text);
  }
  for (const [name, text] of Object.entries(own)) await writeFile(join(user, name), text);
  const environment = (name: string) => ({ XDG_CONFIG_HOME: join(place, "user"), ...variables })[name];
  const options = { folder: join(folder, below), variables: Object.keys(variables), runtime: { environment } };
  return { ...await palisade(parameters, options), folder };
}

async function shown(command: string, setup: Setup): Promise<ShownConfig> {
  const { code, out, err } = await inProject(["config", "show", ...command.split(" "), "--json"], setup);
  assert.equal(code, 0, err);
  return JSON.parse(out);
}

async function valueOf(command: string, option: string, setup: Setup): Promise<[unknown, string]> {
  const found = (await shown(command, setup)).settings.find((each) => each.option === option)!;
  return [found.value, found.from];
}

/** A value that an option takes, as text. */
function sample({ choices, value, read }: OptionSpec): string {
  if (choices) return choices.at(-1)!;
  for (const text of ["0.5", "3", "10000", "int8", "1/2", "a"]) {
    try {
      read?.(text);
      return text;
    } catch { /* the next */ }
  }
  throw new Error(`no sample for ${value}`);
}

/** Options that a project's own file sets, each with a sample. */
const EVERY = commands.flatMap((command) =>
  Object.entries(command.options).filter(([name]) => name !== "config")
    .map(([name, spec]) => ({ command, name, spec, text: isSwitch(spec) ? "true" : sample(spec) }))
);

Deno.test("every option of every command is set by its variable", async () => {
  for (const command of commands) {
    for (const { name, spec, text } of EVERY.filter((each) => each.command === command)) {
      const [one] = variablesOf(command.name, name, spec);
      const setting = await valueOf(command.name, flagOf(name), { variables: { [one]: text } });
      assert.equal(setting[1], "variable", `${one}=${text}`);
      if (!spec.own) {
        assert.equal(
          variablesOf(command.name, name, spec)[1],
          `PALISADE_${one.split("_").slice(-keyOf(name).split("-").length).join("_")}`,
        );
      }
    }
  }
});

Deno.test("every option of every command is set by a file, as TOML and as JSON", async () => {
  for (const command of commands) {
    // Those that can't stand beside another one are tried alone.
    for (const { name, spec, text } of EVERY.filter((each) => each.command === command)) {
      const raw = isSwitch(spec) ? "true" : JSON.stringify(text), section = sectionOf(command.name);
      const file = `{ "$schema": "x", ${JSON.stringify(section)}: { ${JSON.stringify(keyOf(name))}: ${raw} } }`;
      const user: Record<string, string> = name.length % 2 === 0
        ? { "palisade.json": file }
        : { "palisade.toml": `[${section}]\n${keyOf(name)} = ${raw}\n` };
      assert.equal((await valueOf(command.name, flagOf(name), { user }))[1], "user", `${section} ${name}`);
    }
  }
});

Deno.test("a variable sets options of one name", () => {
  const owners = new Map<string, string>();
  for (const { command, name, spec } of EVERY) {
    for (const variable of variablesOf(command.name, name, spec)) {
      const owner = keyOf(name);
      assert.equal(owners.get(variable) ?? owner, owner, variable);
      owners.set(variable, owner);
    }
  }
});

Deno.test("the line, a variable of the command, a variable, the project, the user, the default", async () => {
  const user = { "palisade.toml": 'keep = "5%"\n[ask]\nkeep = "6%"' };
  const project = { "palisade.toml": 'keep = "7%"' };
  const variables = { PALISADE_KEEP: "8%" };
  assert.deepEqual(await valueOf("ask", "--keep", {}), ["20%, at least 512", "default"]);
  assert.deepEqual(await valueOf("read", "--keep", { user }), ["5%", "user"]);
  assert.deepEqual(await valueOf("ask", "--keep", { user }), ["6%", "user"]);
  assert.deepEqual(await valueOf("ask", "--keep", { user, project }), ["7%", "project"]);
  assert.deepEqual(await valueOf("ask", "--keep", { user, project, variables }), ["8%", "variable"]);
  const both = { ...variables, PALISADE_ASK_KEEP: "9%" };
  assert.deepEqual(await valueOf("ask", "--keep", { user, project, variables: both }), ["9%", "variable"]);
  assert.deepEqual(await valueOf("read", "--keep", { user, project, variables: both }), ["8%", "variable"]);
});

Deno.test("commands get what is set, and the line is stronger", async () => {
  const user = { "palisade.toml": "[policies]\njson = true" };
  assert.match((await inProject(["policies"], { user })).out, /^\[/);
  assert.match((await inProject(["policies", "--no-json"], { user })).out, /^┌/);
  assert.match((await inProject(["policies"], { user, variables: { PALISADE_JSON: "off" } })).out, /^┌/);
  assert.match((await inProject(["policies", "--json"], { variables: { PALISADE_JSON: "0" } })).out, /^\[/);
  const line = ["ask", "--context", "no.txt", "--question", "x"];
  const bad = await inProject(line, { variables: { PALISADE_KEEP: "all" } });
  assert.deepEqual([bad.code, bad.out], [3, ""]);
  assert.match(bad.err, /--keep.*"all".*\(--keep is set by PALISADE_KEEP\)/);
  assert.match((await inProject([...line, "--keep", "10%"], { variables: { PALISADE_KEEP: "all" } })).err, /no\.txt/);
});

Deno.test("a setting and a command may have one name", async () => {
  const option = { "palisade.toml": 'policies = "full"' }, command = { "palisade.toml": "[policies]\nsteps = true" };
  assert.deepEqual(await valueOf("eval", "--policies", { project: option }), ["full", "project"]);
  assert.deepEqual(await valueOf("policies", "--steps", { project: command }), [true, "project"]);
});

Deno.test("a required option may be set elsewhere", async () => {
  const { code, err } = await inProject(["ask", "--context", "no.txt"], {});
  assert.deepEqual([code, /required option '--question <text>' not specified/.test(err)], [2, true], err);
  const variables = { PALISADE_QUESTION: "Who?" };
  assert.match((await inProject(["ask", "--context", "no.txt"], { variables })).err, /no\.txt/);
  const project = { "palisade.toml": '[ask]\nquestion = ["Who?", "Where?"]' };
  assert.deepEqual(await valueOf("ask", "--question", { project }), [["Who?", "Where?"], "project"]);
});

Deno.test("a weaker setting gives way to one that it can't stand beside; two of one level are refused", async () => {
  const project = { "palisade.toml": 'keep = "10%"\nmax-cache = 100' }, variables = { PALISADE_RISK: "0.1" };
  const settings = (await shown("ask", { project, variables })).settings;
  const of = (name: string) => settings.find(({ option }) => option === name)!.from;
  assert.deepEqual([of("--risk"), of("--keep"), of("--max-cache")], ["variable", "default", "default"]);
  const line = ["ask", "--context", "no.txt", "--question", "x"];
  assert.match((await inProject([...line, "--risk", "0.1"], { project })).err, /no\.txt/);
  const two = { "palisade.toml": 'keep = "10%"\nrisk = 0.1' };
  for (const each of [line, ["config", "show", "ask"]]) {
    const { code, err } = await inProject(each, { project: two });
    assert.equal(code, 2);
    assert.match(err, /--risk.*palisade\.toml, risk\).*--keep.*palisade\.toml, keep\)/);
  }
  assert.match((await inProject([...line, "--risk", "0.1", "--keep", "2"], {})).err, /'--risk <share>' cannot be used/);
});

/** Files that are refused: what is wrong, the file, exit code, what the message must say. */
const REFUSED: [string, Setup, number, RegExp][] = [
  [
    "an unknown key",
    { project: { "palisade.toml": "kep = 1" } },
    3,
    /palisade\.toml: unknown setting kep; did you mean keep\?/,
  ],
  [
    "a key with an underline",
    { project: { "palisade.toml": "max_cache = 1" } },
    3,
    /max_cache; did you mean max-cache\?/,
  ],
  ["a key like nothing", { project: { "palisade.toml": "zzzzzzz = 1" } }, 3, /zzzzzzz; palisade config show lists/],
  [
    "a key of another command",
    { project: { "palisade.toml": "[ask]\ntasks = 1" } },
    3,
    /unknown setting \[ask\] tasks/,
  ],
  [
    "an unknown command",
    { project: { "palisade.toml": "[evl]\nkeep = 1" } },
    3,
    /unknown command \[evl\]; did you mean eval\?/,
  ],
  ["a section that is no table", { project: { "palisade.json": '{"ask": 1}' } }, 3, /unknown setting ask/],
  ["out for all", { project: { "palisade.toml": 'out = "x"' } }, 3, /out means something else.*\[read\], \[eval\]/],
  ["a place for texts", { project: { "palisade.toml": 'snapshots = "redis://x"' } }, 3, /can't set snapshots/],
  [
    "the same below a command",
    { project: { "palisade.toml": '[ask]\nsnapshots = "x"' } },
    3,
    /can't set \[ask\] snapshots/,
  ],
  ["broken TOML", { project: { "palisade.toml": "keep = 1\nx = [" } }, 3, /palisade\.toml, line 2, column \d+/],
  ["a key twice", { project: { "palisade.toml": "keep = 1\nkeep = 2" } }, 3, /line 2/],
  ["broken JSON", { project: { "palisade.json": "{" } }, 3, /palisade\.json: /],
  ["JSON that is no object", { project: { "palisade.json": "[1]" } }, 3, /want an object/],
  ["a deep one", { project: { "palisade.toml": `keep = ${"[".repeat(100_000)}` } }, 3, /palisade\.toml/],
  ["two files", { project: { "palisade.json": "{}", "palisade.toml": "" } }, 3, /two files of settings in .*project/],
  [
    "a number that is none",
    { project: { "palisade.toml": 'threads = "x"' } },
    2,
    /"x" of .*threads: want a whole number/,
  ],
  ["a date", { project: { "palisade.toml": "keep = 2020-01-01" } }, 2, /keep: want a text or a number/],
  [
    "a switch that is a number",
    { project: { "palisade.toml": "offline = 2" } },
    2,
    /2 of .*offline: want true or false/,
  ],
  ["a list for one value", { project: { "palisade.toml": 'keep = ["1", "2"]' } }, 2, /keep: want one value/],
  ["a list of tables", { project: { "palisade.toml": "[[ask]]\nkeep = 1" } }, 3, /unknown setting ask/],
  [
    "a word that is no choice",
    { variables: { PALISADE_BACKEND: "cuda" } },
    2,
    /"cuda" of PALISADE_BACKEND: want one of auto/,
  ],
  ["true for a text", { project: { "palisade.toml": "policy = true" } }, 2, /true of .*policy: want a text/],
  ["a null", { project: { "palisade.json": '{"policy": null}' } }, 2, /null of .*policy: want a text/],
  ["no such file", { variables: { PALISADE_CONFIG: "nowhere.toml" } }, 3, /nowhere\.toml/],
];

for (const [what, setup, code, message] of REFUSED) {
  Deno.test(`settings refuse ${what}`, async () => {
    const result = await inProject(["ask", "--context", "no.txt", "--question", "x"], setup);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.equal(result.out, "");
  });
}

Deno.test("true needs no quotes where the option has the word", async () => {
  assert.deepEqual(await valueOf("ask", "--positions", { project: { "palisade.toml": "positions = true" } }), [
    "true",
    "project",
  ]);
});

Deno.test("the project's file is the current folder's, or of its repository", async () => {
  const project = { "palisade.toml": "seed = 7" }, below = "a/b";
  assert.equal((await valueOf("ask", "--seed", { project }))[0], 7);
  assert.equal((await valueOf("ask", "--seed", { project, below }))[1], "default", "no repository");
  const repository = { ".git/": "", ...project };
  assert.equal((await valueOf("ask", "--seed", { project: repository, below }))[0], 7);
});

Deno.test("--config takes the place of the project's file, and may say all; none reads nothing", async () => {
  const setup = { project: { "palisade.toml": "seed = 7", "mine.toml": 'snapshots = "off"' } };
  const { folder } = await inProject(["config", "show"], setup);
  const of = async (config: string) => {
    const { out, err } = await inProject(["config", "show", "ask", "--json", "--config", config], {
      user: { "palisade.toml": 'keep = "1%"' },
      project: setup.project,
    });
    assert.equal(err, "");
    const { settings } = JSON.parse(out) as ShownConfig;
    return ["--seed", "--snapshots", "--keep"].map((name) => settings.find(({ option }) => option === name)!.from);
  };
  assert.deepEqual(await of("mine.toml"), ["default", "project", "user"]);
  assert.deepEqual(await of(join(folder, "mine.toml")), ["default", "project", "user"]);
  assert.deepEqual(await of("none"), ["default", "default", "default"]);
});

Deno.test("paths of a file start from its folder", async () => {
  const project = { ".git/": "", "palisade.toml": '[ask]\ncontext = "book.txt"\nmodel = "./m.gguf"' }, below = "a";
  const { folder } = await inProject(["config", "show"], { project });
  const at = async (option: string) => {
    const [value] = await valueOf("ask", option, { project, below });
    return String(value).slice(-30);
  };
  assert.ok(folder.endsWith("project"));
  assert.match(await at("--context"), /project[/\\]book\.txt$/);
  assert.match(await at("--model"), /project[/\\]m\.gguf$/);
  assert.deepEqual(await valueOf("ask", "--model", { project: { "palisade.toml": 'model = "smollm2-135m"' } }), [
    "smollm2-135m",
    "project",
  ]);
  assert.equal((await valueOf("ask", "--context", { project: { "palisade.toml": '[ask]\ncontext = "-"' } }))[0], "-");
});

Deno.test("config show lists what is set, for which commands, and variables that set nothing", async () => {
  const setup = {
    project: { "palisade.toml": "threads = 2" },
    variables: { PALISADE_KEPP: "1", PALISADE_SALT: "s3cret" },
  };
  const { out, code } = await inProject(["config", "show"], setup);
  assert.equal(code, 0);
  assert.match(out, /project: .*palisade\.toml/);
  assert.match(out, /--threads +│ 2 +│ .*threads +│ ask, read, demo, /);
  assert.match(out, /PALISADE_KEPP sets nothing: did you mean PALISADE_KEEP\?/);
  assert.ok(!out.includes("s3cret") && out.includes("(not shown)"), out);
  const nothing = await inProject(["config", "show"], {});
  assert.match(nothing.out, /No file of settings.*\n.*Nothing is set/);
  const wrong = await inProject(["config", "show", "evil"], {});
  assert.deepEqual([wrong.code, /did you mean eval\?/.test(wrong.err)], [2, true]);
});

Deno.test("lists of a file are put together", async () => {
  const project = { "palisade.toml": '[eval]\ntasks = ["vt", "cwe"]\nkeep = [0.1, "20%"]' };
  const settings = (await shown("eval", { project })).settings;
  const of = (name: string) => settings.find(({ option }) => option === name)!.value;
  assert.deepEqual([of("--tasks"), of("--keep")], ["vt,cwe", "0.1,20%"]);
  assert.ok(EVERY.some(({ spec }) => isRepeatable(spec)));
});
