/** Completion for PowerShell, Windows' own and the newer ones: the table as hash tables, and one block that reads them. */
import { VERSION } from "../../runtime/version.ts";
import { FIRST_OPTIONS, type Grammar, type Offer } from "./offers.ts";
import { COMPLETE } from "./hook.ts";

type Pairs = readonly (readonly [string, string])[];

/** The script. */
export function powershellScript({ first, groups, commands, words }: Grammar): string {
  const offers = commands.flatMap(({ name, options, argument }) => [
    ...options.flatMap(({ flag, offer }): [string, string][] => offer ? [[`${name} ${flag}`, offerText(offer)]] : []),
    ...(argument ? [[name, `${offerText(argument)}|${argument.many ? "many" : ""}`] as [string, string]] : []),
  ]);
  const flags = commands.map((
    { name, options },
  ): [string, Pairs] => [name, options.map(({ flag, help }) => [flag, help])]);
  const repeatable = commands.flatMap(({ name, options }) =>
    options.filter((each) => each.repeatable).map(({ flag }) => quoted(`${name} ${flag}`))
  );
  return `# PowerShell completion for palisade ${VERSION}: palisade completion powershell
# In these tables a tab stands between a word and what it means.
Register-ArgumentCompleter -Native -CommandName palisade -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $first = ${array([...first, ...FIRST_OPTIONS])}
    # The members of groups.
    $members = ${table([...groups])}
    $flags = ${table(flags)}
    $repeatable = @(${repeatable.join(", ")})
    $lists = ${table([...words])}
    # What options take, and commands as their arguments: list|what the program is asked|files|commas|many.
    $offers = @{
${offers.map(([place, text]) => `        ${quoted(place)} = ${quoted(text)}`).join("\n")}
    }
${WORK}}
`;
}

function offerText(offer: Offer): string {
  const { words = "", here = "", files, list } = offer;
  return [words, here, files ? "files" : "", list ? "commas" : ""].join("|");
}

function table(entries: readonly (readonly [string, Pairs])[]): string {
  return `@{\n${entries.map(([name, pairs]) => `        ${quoted(name)} = ${array(pairs)}`).join("\n")}\n    }`;
}

function array(pairs: Pairs): string {
  return `@(${pairs.map(([word, about]) => quoted(about === "" ? word : `${word}\t${about}`)).join(", ")})`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

const WORK = String.raw`
    # Words before the cursor without the one that is being typed.
    $line = @($commandAst.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursorPosition } | ForEach-Object {
        if ($_ -is [System.Management.Automation.Language.StringConstantExpressionAst]) { $_.Value } else { $_.Extent.Text }
    })
    $typed = $wordToComplete.TrimStart([char[]]@("'", '"'))

    function Ask-Palisade($asked, $text) {
        try { & $line[0] '${COMPLETE}' $asked $text 2>$null } catch { }
    }

    function Choose-Palisade($words, $part, $before) {
        foreach ($each in @($words)) {
            $word, $about = "$each" -split [char]9, 2
            if (-not $word.StartsWith($part, [System.StringComparison]::Ordinal)) { continue }
            $text = "$before$word"
            if ($text -match '[^A-Za-z0-9_./:=%+-]') { $text = "'" + $text.Replace("'", "''") + "'" }
            if (-not $about) { $about = $word }
            [System.Management.Automation.CompletionResult]::new($text, $word, 'ParameterValue', $about)
        }
    }

    function Offer-Palisade($offer, $value, $prefix) {
        $list, $here, $files, $commas, $null = $offer -split '\|'
        if ($here -eq 'policies' -and $value.Contains('(')) {
            return Choose-Palisade (Ask-Palisade $here $value) $value $prefix
        }
        $before = ''
        if ($commas -and $value.Contains(',')) { $before = $value.Substring(0, $value.LastIndexOf(',') + 1) }
        $part = $value.Substring($before.Length)
        $words = @(if ($list) { $lists[$list] }) + @(if ($here -and $here -ne 'policies') { Ask-Palisade $here $value })
        Choose-Palisade $words $part "$prefix$before"
        if ($files -and -not $prefix) { [System.Management.Automation.CompletionCompleters]::CompleteFilename($value) }
    }

    if ($line.Count -le 1) { return Choose-Palisade $first $typed '' }
    $name = $line[1]
    $at = 2
    if ($members.ContainsKey($name)) {
        if ($line.Count -eq 2) { return Choose-Palisade $members[$name] $typed '' }
        $name = "$name $($line[2])"
        $at = 3
    }

    # Whether an option waits for its value, and how many arguments there are.
    $waiting = ''
    $arguments = 0
    for ($i = $at; $i -lt $line.Count; $i++) {
        if ($waiting) { $waiting = '' }
        elseif ($line[$i].StartsWith('--')) { if ($offers.ContainsKey("$name $($line[$i])")) { $waiting = $line[$i] } }
        else { $arguments++ }
    }
    if ($waiting) { return Offer-Palisade $offers["$name $waiting"] $typed '' }
    if ($typed -match '^(--[a-z-]+)=(.*)$') {
        $flag, $value = $Matches[1], $Matches[2]
        if ($offers.ContainsKey("$name $flag")) { return Offer-Palisade $offers["$name $flag"] $value "$flag=" }
        return
    }
    if (-not $typed.StartsWith('-') -and $offers.ContainsKey($name)) {
        if ($arguments -eq 0 -or $offers[$name].EndsWith('|many')) { return Offer-Palisade $offers[$name] $typed '' }
    }
    $said = @($line | ForEach-Object { ($_ -split '=')[0] })
    $free = @($flags[$name] | Where-Object {
        $flag = ($_ -split [char]9)[0]
        $said -notcontains $flag -or $repeatable -contains "$name $flag"
    })
    Choose-Palisade $free $typed ''
`;
