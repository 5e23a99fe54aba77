/** Completion: what real shells offer, made from the table of options, and what the program is asked on the way. */
import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { leaves } from "../../cli/command.ts";
import { SHELLS } from "../../cli/commands/completion.ts";
import { inBrackets } from "../../cli/completion/brackets.ts";
import { grammarOf } from "../../cli/completion/offers.ts";
import { allCommands } from "../../cli/list.ts";
import { flagOf } from "../../cli/options.ts";
import { withCommon } from "../../cli/parse.ts";
import { policies } from "../../core/policy/registry.ts";
import { policyWords } from "../../cli/words.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { MODELS } from "../../model/store/registry.ts";
import { runChild } from "../../tools/child.ts";
import { palisade } from "../_helper/io.ts";
import { bashOffers, fishOffers, shellRoom, zshLines } from "../_helper/shells.ts";
import { skipped } from "../_helper/skip.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("completion");
const FILES = ["bark.txt", "book.txt", "my book.txt"];

async function scriptFor(shell: string): Promise<string> {
  const { code, out, err } = await palisade(["completion", shell]);
  assert.equal(code, 0, err);
  return out;
}

async function roomOf(shell: string) {
  const room = await shellRoom(join(folder, shell), await scriptFor(shell), FILES);
  await mkdir(join(room.folder, "cache/models"), { recursive: true });
  await writeFile(join(room.folder, "cache/models", MODELS[0].file), "");
  return room;
}

/** A test for a shell that is here. */
async function withShell(shell: string, what: string, body: () => Promise<void>): Promise<void> {
  const name = `${shell} ${what}`;
  if ((await runChild(shell, ["-c", "exit 0"])).code === 0) Deno.test(name, body);
  else skipped(name, `no ${shell} here: tools/install_test_tools.sh`);
}

/** Lines with what must be offered, all of it, for every shell that is asked for words. */
const OFFERS: readonly (readonly [line: string, words: readonly string[]])[] = [
  ["palisade mod", ["models"]],
  ["palisade completion ", SHELLS],
  ["palisade models p", ["path", "pull"]],
  ["palisade ask --cont", ["--context"]],
  ["palisade ask --backend w", ["wasm", "webgpu"]],
  ["palisade ask --merge ", ["mean", "none", "sum"]],
  ["palisade ask --quiet --positions r", ["rerotate"]],
  ["palisade ask --step-policy h2o-", ["h2o-normalised"]],
  ["palisade ask --policy layer-", ["layer-defensive", "layer-defensive@reference"]],
  ["palisade models rm sm", ["smollm2-135m"]],
  ["palisade ask --model sm", ["smollm2-135m"]],
  ["palisade ask --label x", []],
];

await withShell("bash", "offers commands, options, words, what is here, and leaves files to itself", async () => {
  const lines: [string, readonly string[]][] = [
    ...OFFERS.map(([line, words]): [string, readonly string[]] => [line, words]),
    // Bash takes = and : for ends of words, and replaces what stands behind them; @ goes on to belong to the word.
    ["palisade ask --backend=w", ["wasm", "webgpu"]],
    ["palisade ask --model=Qwen/Qwen3-0.6B-GGUF:", ["Q8_0"]],
    ["palisade ask --policy snapkv@", ["@reference"]],
    ["palisade eval --tasks vt,cw", ["vt,cwe"]],
    ["palisade ask --policy 'snapkv(win", ["snapkv(window=", "snapkv(window=..."]],
    ["palisade ask --policy snapkv\\(win", ["snapkv\\(window="]],
    ['palisade ask --policy "adakv(snapk', ["adakv(snapkv"]],
    ["palisade ask --context bo", []],
    ["palisade report book.txt --against cap", ["capkv"]],
    // An option that was said once, and one that may be said again.
    ["palisade ask --think --question a --thi", []],
    ["palisade ask --question a --que", ["--question"]],
    ["palisade snapshots prune --to 0 ", ["--snapshots", "--json", "--color", "--config", "--help", "--help-all"]],
    ["palisade --v", ["--version"]],
  ];
  const offers = await bashOffers(await roomOf("bash"), lines.map(([line]) => line));
  lines.forEach(([line, words], i) => assert.deepEqual([...new Set(offers[i])].sort(), [...words].sort(), line));
});

await withShell("fish", "offers the same, with what it means, and files", async () => {
  const lines: [string, readonly string[]][] = [
    ...OFFERS.map(([line, words]): [string, readonly string[]] => [line, words]),
    ["palisade ask --backend=w", ["--backend=wasm", "--backend=webgpu"]],
    ["palisade eval --tasks vt,cw", ["vt,cwe"]],
    ["palisade eval --tasks vt,qa:bar", ["vt,qa:bark.txt"]],
    ["palisade ask --policy 'snapkv(win", ["snapkv(window="]],
    ["palisade ask --context bo", ["book.txt", "books/"]],
    ["palisade evict bar", ["bark.txt"]],
    ["palisade --v", ["--version"]],
  ];
  const offers = await fishOffers(await roomOf("fish"), lines.map(([line]) => line));
  lines.forEach(([line, words], i) => {
    assert.deepEqual(offers[i].map((each) => each.split("\t")[0]).sort(), [...words].sort(), line);
  });
  assert.match(offers[0][0], /\tlist, fetch, find and remove model files$/);
});

await withShell("zsh", "completes the same at a terminal", async () => {
  const lines: [typed: string, becomes: string, shown?: RegExp][] = [
    ["palisade mod", "palisade models "],
    ["palisade models pu", "palisade models pull "],
    ["palisade ask --cont", "palisade ask --context="],
    ["palisade ask --backend weba\x7f", "palisade ask --backend webgpu "],
    ["palisade ask --backend=was", "palisade ask --backend=wasm "],
    ["palisade ask --backend ", "palisade ask --backend ", /auto +ts +wasm +webgpu/],
    ["palisade ask --policy capk", "palisade ask --policy capkv "],
    [
      "palisade ask --policy layer-defensive",
      "palisade ask --policy layer-defensive",
      /Keeps what the worst case needs/,
    ],
    ["palisade ask --policy 'snapkv(win", "palisade ask --policy 'snapkv(window="],
    ["palisade eval --tasks vt,cw", "palisade eval --tasks vt,cwe,"],
    ["palisade eval --tasks vt,qa:bar", "palisade eval --tasks vt,qa:bark.txt "],
    ["palisade models path ", "palisade models path smollm2-135m "],
    ["palisade ask --model Qwen/Qwen3", "palisade ask --model Qwen/Qwen3-0.6B-GGUF:Q8_0 "],
    ["palisade ask --context bar", "palisade ask --context bark.txt "],
    ["palisade ask --context my", "palisade ask --context my\\ book.txt "],
    ["palisade ask --risk 0.1 --kee", "palisade ask --risk 0.1 --kee"],
    ["palisade ask --max-cache 9 --kee", "palisade ask --max-cache 9 --keep="],
    ["palisade evict bar", "palisade evict bark.txt "],
  ];
  const done = await zshLines(await roomOf("zsh"), lines.map(([typed]) => typed));
  lines.forEach(([typed, becomes, shown], i) => {
    assert.equal(done[i].line, becomes, typed);
    if (shown) assert.match(done[i].shown, shown);
  });
});

Deno.test("every option of every command is in every script, with its words", async () => {
  const grammar = await grammarOf(await allCommands());
  const [bash, zsh, fish, powershell] = await Promise.all(SHELLS.map(scriptFor));
  for (const command of leaves(await allCommands()).map(withCommon)) {
    const offered = grammar.commands.find(({ name }) => name === command.name)!;
    const flags = new RegExp(`^ +'?${command.name}'?\\) flags=\\(([^)]*)\\)`, "m").exec(bash)![1].split(" ");
    for (const [name, spec] of Object.entries(command.options)) {
      const flag = flagOf(name), option = offered.options.find((each) => each.flag === flag)!;
      assert.equal(option.help, spec.help);
      assert.equal(option.offer === undefined, spec.value === undefined, `${command.name} ${flag}`);
      if (spec.choices) assert.deepEqual(grammar.words.get(option.offer!.words!)!.map(([word]) => word), spec.choices);
      assert.ok(flags.includes(flag), `bash: ${command.name} ${flag}`);
      assert.ok(fish.includes(`'__palisade_at ${command.name}' -l ${flag.slice(2)} `), `fish: ${command.name} ${flag}`);
      assert.ok(zsh.includes(`${flag}${option.offer ? "=" : ""}[`), `zsh: ${flag}`);
      assert.ok(powershell.includes(`'${flag}\t`), `PowerShell: ${flag}`);
    }
  }
  for (const [, words] of grammar.words) {
    for (const [word] of words) for (const script of [bash, fish, powershell]) assert.ok(script.includes(word), word);
  }
});

Deno.test("the script for PowerShell is closed everywhere and names each place's offer", async () => {
  const script = await scriptFor("powershell"), open: string[] = [];
  // Texts and comments aside, every bracket has its partner.
  const bare = script.replace(/'(?:[^']|'')*'|"(?:[^"`]|`.)*"|^\s*#.*$/gm, "");
  for (const [bracket] of bare.matchAll(/[()[\]{}]/g)) {
    if ("([{".includes(bracket)) open.push(bracket);
    else assert.equal(`${open.pop()}${bracket}`, { ")": "()", "]": "[]", "}": "{}" }[bracket]);
  }
  assert.deepEqual(open, []);
  assert.doesNotMatch(bare, /['"]/);
  assert.match(script, /^Register-ArgumentCompleter -Native -CommandName palisade -ScriptBlock \{$/m);
  const { commands } = await grammarOf(await allCommands());
  for (const { name, options, argument } of commands) {
    for (const { flag, offer } of options) {
      assert.equal(new RegExp(`^ +'${name} ${flag}' = '`, "m").test(script), offer !== undefined, `${name} ${flag}`);
    }
    assert.equal(new RegExp(`^ +'${name}' = '`, "m").test(script), argument !== undefined, name);
  }
});

const POWERSHELL = "PowerShell offers the same";
if ((await runChild("pwsh", ["-NoProfile", "-Command", "exit 0"])).code !== 0) {
  skipped(POWERSHELL, "no pwsh here", "device");
} else {
  Deno.test(POWERSHELL, async () => {
    const room = await roomOf("powershell");
    const program = `. ${room.script}.ps1; foreach ($line in $args) {
      (TabExpansion2 -inputScript $line -cursorColumn $line.Length).CompletionMatches | ForEach-Object { $_.CompletionText }; '@@' }`;
    await writeFile(`${room.script}.ps1`, await scriptFor("powershell"));
    await writeFile(join(room.folder, "ask.ps1"), program);
    const lines = OFFERS.filter(([, words]) => words.length > 0);
    const args = ["-NoProfile", "-File", join(room.folder, "ask.ps1"), ...lines.map(([line]) => line)];
    const { stdout, stderr } = await runChild("pwsh", args, { cwd: room.folder, env: room.env, timeout: 120 });
    assert.equal(stderr, "");
    const offers = stdout.split(/@@\r?\n/).map((each) => each.split(/\r?\n/).filter((word) => word !== ""));
    lines.forEach(([line, words], i) => {
      for (const word of words) {
        assert.ok(offers[i].some((each) => each.replaceAll("'", "") === word), `${line} ${word}`);
      }
    });
  });
}

Deno.test("inBrackets() offers what resolvePolicy() takes", () => {
  const words = (typed: string) => inBrackets(typed).map((each) => [each].flat()[0]);
  assert.deepEqual(words("snapkv(w"), ["snapkv(window="]);
  assert.deepEqual(words("snapkv(window=16, w"), []);
  assert.deepEqual(words("snapkv(window="), ["snapkv(window=32"]);
  assert.deepEqual(words("snapkv(merge="), ["none", "mean", "sum"].map((each) => `snapkv(merge=${each}`));
  assert.deepEqual(words("full,adakv(snapkv(ker"), ["full,adakv(snapkv(kernel="]);
  assert.ok(words("adakv(").includes("adakv(snapkv") && words("adakv(").includes("adakv(safeguard="));
  assert.ok(!words("adakv(snapkv, ").includes("adakv(snapkv, tova"));
  // Stages are of the outermost, and what the published code hasn't is not offered of it.
  assert.deepEqual(words("adakv(snapkv(mer"), []);
  assert.deepEqual(words("none-such("), []);
  for (const { name, parameters, reference } of policies) {
    const offered = words(`${name}(`), published = words(`${name}@reference(`);
    for (const each of parameters) {
      assert.ok(offered.includes(`${name}(${each.name}=`), `${name} ${each.name}`);
      if (reference) assert.equal(published.includes(`${name}@reference(${each.name}=`), !each.oursOnly);
      const values = each.type === "text" && each.choices ? each.choices : [each.default];
      assert.deepEqual(words(`${name}(${each.name}=`), values.map((value) => `${name}(${each.name}=${value}`));
    }
  }
});

Deno.test("words of policies are those that there are", async () => {
  for (const each of await policyWords()) {
    const [name] = [each].flat();
    if (!policies.find((policy) => name.startsWith(policy.name))!.parameters.some((own) => own.name === "file")) {
      assert.equal(resolvePolicy(name).name, name);
    }
  }
});

Deno.test("completion refuses other shells, and the hook never says what went wrong", async () => {
  const { code, err } = await palisade(["completion", "fis"]);
  assert.equal(code, 3);
  assert.match(err, /fis: did you mean fish\?/);
  assert.equal((await palisade(["completion"])).code, 2);
  const settings = join(folder, "broken.toml");
  await writeFile(settings, "snapshots = [");
  const environment = (name: string) => name === "PALISADE_CONFIG" ? settings : undefined;
  for (const asked of [["snapshots"], ["models"], ["policies", "a(b(c"], ["none-such"], ["toString"], []]) {
    const unlistable = { environment: (name: string) => name === "PALISADE_CACHE" ? settings : environment(name) };
    const said = await palisade(["__complete", ...asked], { runtime: unlistable, interactive: true });
    assert.deepEqual(said, { code: 0, out: "", err: "" }, asked.join(" "));
  }
});

Deno.test("the hook names snapshots by as much as tells them apart, the newest first, with what they are of", async () => {
  const place = join(folder, "snapshots");
  await mkdir(place);
  const names = ["aaaaaaaaaaaaaaaa", "aaaaaaaaaaaabbbb", "cccccccccccccccc"];
  for (const name of names) await writeFile(join(place, `${name}.palisade`), "no snapshot");
  const environment = (name: string) => ({ PALISADE_SNAPSHOTS: place, PALISADE_CONFIG: "none" })[name];
  const { out } = await palisade(["__complete", "snapshots"], { runtime: { environment } });
  assert.deepEqual(out.trimEnd().split("\n").map((line) => line.split("\t")[0]).sort(), [
    ...names.slice(0, 2),
    "cccccccccccc",
  ]);
});
