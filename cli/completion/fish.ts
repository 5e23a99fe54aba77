/** Completion for fish: one `complete` for each option of each command. */
import { VERSION } from "../../runtime/version.ts";
import { FIRST_OPTIONS, type Grammar, type Offer, type OfferedCommand } from "./offers.ts";
import { COMPLETE } from "./hook.ts";

/** The script. */
export function fishScript({ first, groups, commands, words }: Grammar): string {
  const lists = [...words].map(([name, list]) =>
    `        case ${name}\n            printf '%s\\t%s\\n' ${list.flat().map(quoted).join(" ")}\n`
  );
  const lines = [
    "complete -c palisade -f",
    ...FIRST_OPTIONS.map(([flag, help]) =>
      `complete -c palisade -n '__palisade_words 1' -l ${flag.slice(2)} -d ${quoted(help)}`
    ),
    ...first.map(([name, about]) => `complete -c palisade -n '__palisade_words 1' -a ${name} -d ${quoted(about)}`),
    ...[...groups].flatMap(([group, list]) =>
      list.map(([name, about]) =>
        `complete -c palisade -n '__palisade_at ${group}; and __palisade_words 2' -a ${name} -d ${quoted(about)}`
      )
    ),
    ...commands.flatMap(linesOf),
  ];
  return `# fish completion for palisade ${VERSION}: palisade completion fish

# Lists of words, each with what it means.
function __palisade_list
    switch "$argv[1]"
${lists.join("")}    end
end
${WORK}
${lines.join("\n")}
`;
}

function linesOf({ name, options, argument }: OfferedCommand): string[] {
  const at = `complete -c palisade -n '__palisade_at ${name}'`;
  return [
    ...options.map(({ flag, help, offer }) =>
      `${at} -l ${flag.slice(2)}${offer ? valueOf(offer) : ""} -d ${quoted(help)}`
    ),
    ...(argument ? [`${at}${argument.files ? " -F" : ""}${wordsOf(argument)}`] : []),
  ];
}

function valueOf(offer: Offer): string {
  return `${offer.files ? " -r -F" : " -x"}${wordsOf(offer)}`;
}

function wordsOf(offer: Offer): string {
  const { words = "", here = "", list } = offer;
  if (words === "" && here === "") return "";
  return ` -a '(__palisade_offer "${words}" "${here}" "${list ? 1 : ""}")'`;
}

function quoted(text: string): string {
  return `'${text.replace(/[\\']/g, "\\$&")}'`;
}

const WORK = String.raw`
# Whether so many words are complete, the program's name among them.
function __palisade_words
    test (count (commandline -opc)) -eq $argv[1]
end

# Whether the first words are these.
function __palisade_at
    set -l typed (commandline -opc)
    set -l last (math (count $argv) + 1)
    test (count $typed) -ge $last; and test "$typed[2..$last]" = "$argv"
end

# The value that is being typed, without its option and an open quote.
function __palisade_typed
    string replace -r '^--[a-z-]+=' '' -- (commandline -ct) | string replace -r '^["\']' '' | string replace -ar '\\\\(.)' '$1'
end

# What the program says of this machine; nothing where it can't.
function __palisade_here
    set -l program (commandline -opc)[1]
    set program (string replace -r '^~' "$HOME" -- $program)
    type -q -- $program; or set program palisade
    command $program ${COMPLETE} $argv 2>/dev/null </dev/null
end

# A list of words and what the program is asked for; several between commas.
function __palisade_offer
    set -l typed (__palisade_typed)
    set -l done ''
    if test "$argv[2]" = policies; and string match -q '*(*' -- "$typed"
        __palisade_here policies "$typed"
        return
    end
    test -n "$argv[3]"; and set done (string replace -r '[^,]*$' '' -- "$typed")
    set -l part (string sub -s (math (string length -- "$done") + 1) -- "$typed")
    set -l words (__palisade_list "$argv[1]")
    test -n "$argv[2]"; and test "$argv[2]" != policies; and set -a words (__palisade_here $argv[2] "$typed")
    for word in $words
        set -l plain (string split -f1 \t -- $word)
        if string match -q '*:' -- $plain; and string match -q "$plain*" -- "$part"
            for file in (__fish_complete_path (string replace -- $plain '' "$part"))
                echo $done$plain$file
            end
        else
            echo $done$word
        end
    end
end
`;
