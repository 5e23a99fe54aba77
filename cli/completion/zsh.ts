/** Completion for zsh: one call of `_arguments` for each command. */
import { VERSION } from "../../runtime/version.ts";
import { FIRST_OPTIONS, type Grammar, type Offer, type OfferedCommand, type OfferedOption } from "./offers.ts";
import { COMPLETE } from "./hook.ts";

type Pairs = readonly (readonly [string, string])[];

/** The script. It may be evaluated, or lie in a folder of `$fpath` as `_palisade`. */
export function zshScript({ first, groups, commands, words }: Grammar): string {
  const lists = [...words].map(([name, list]) => `    ${name}) offered+=(\n${described(list, 6)}\n      ) ;;\n`).join(
    "",
  );
  const leaves = commands.filter(({ name }) => !name.includes(" ")).map((each) => branch(each.name, argumentsOf(each)));
  const members = [...groups].map(([name, list]) => branch(name, groupOf(name, list, commands)));
  return `#compdef palisade
# zsh completion for palisade ${VERSION}: palisade completion zsh

# Lists of words, each with what it means behind a colon.
_palisade_list() {
  case $1 in
${lists}  esac
}
${OFFER}
_palisade() {
  local curcontext=$curcontext _palisade_program=$words[1] state line ret=1
  local -A opt_args
  _arguments -C ${
    FIRST_OPTIONS.map(([flag, help]) => quoted(`(- *)${flag}[${escaped(help)}]`)).join(" ")
  } '1:command:->first' '*:: :->rest' && ret=0
${chosen(first, [...leaves, ...members], 2)}
  return ret
}
${END}`;
}

function branch(name: string, body: string): string {
  return `    ${name})\n${body}\n      ;;\n`;
}

function groupOf(name: string, members: Pairs, commands: readonly OfferedCommand[]): string {
  const bodies = members.map(([member]) => {
    const command = commands.find((each) => each.name === `${name} ${member}`)!;
    return `      ${member})\n${argumentsOf(command)}\n        ;;\n`;
  });
  return `      _arguments -C '(- *)--help[what there is]' '1:command:->first' '*:: :->rest' && ret=0
${chosen(members, bodies, 6)}`;
}

/** What follows `_arguments` with a command: the list of commands, or the branch of the one that is there. */
function chosen(commands: Pairs, branches: readonly string[], indent: number): string {
  const at = " ".repeat(indent);
  return `${at}case $state in
${at}first)
${at}  local -a commands=(
${described(commands, indent + 4)}
${at}  )
${at}  _describe -t commands command commands && ret=0
${at}  ;;
${at}rest)
${at}  case $line[1] in
${branches.join("")}${at}  esac
${at}  ;;
${at}esac`;
}

function argumentsOf({ options, argument }: OfferedCommand): string {
  const specs = options.map(specOf);
  if (argument) {
    specs.push(quoted(`${argument.many ? "*" : "1"}:${escaped(argument.value)}:${actionOf(argument)}`));
  }
  return `      _arguments -S \\\n        ${specs.join(" \\\n        ")} && ret=0`;
}

function specOf({ flag, help, repeatable, excludes, offer }: OfferedOption): string {
  const once = repeatable ? "*" : excludes.length > 0 ? `(${[flag, ...excludes].join(" ")})` : "";
  const about = `[${escaped(help)}]`;
  if (flag.startsWith("--help")) return quoted(`(- *)${flag}${about}`);
  return quoted(`${once}${flag}${offer ? `=${about}:${escaped(offer.value)}:${actionOf(offer)}` : about}`);
}

/** A value that nothing is known of is named, and nothing offered. */
function actionOf({ words, here, files, list }: Offer): string {
  if (!words && !here) return files ? "_files" : " ";
  return `{_palisade_offer "${words ?? ""}" "${here ?? ""}" "${files ? 1 : ""}" "${list ? 1 : ""}"}`;
}

function described(pairs: Pairs, indent: number): string {
  return pairs.map(([word, about]) => {
    const text = word.replaceAll(":", "\\:");
    return `${" ".repeat(indent)}${quoted(about === "" ? text : `${text}:${about}`)}`;
  }).join("\n");
}

function escaped(text: string): string {
  return text.replace(/[\[\]:\\]/g, "\\$&");
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

const OFFER = String.raw`
# What the program says of this machine; nothing where it can't.
_palisade_here() {
  local program=palisade text
  whence -p -- "@{(Q)_palisade_program}" > /dev/null && program=@{(Q)_palisade_program}
  for text in @{(f)"$($program ${COMPLETE} $1 "$2" 2> /dev/null < /dev/null)"}; do
    offered+=("@{@{text%%$'\t'*}//:/\\:}:@{text#*$'\t'}")
  done
}

# Offers a list of words, what the program is asked for, and files; several between commas.
_palisade_offer() {
  local list=$1 here=$2 files=$3 commas=$4 typed each ret=1
  local -aU offered more
  if [[ $here == policies && $PREFIX == *\(* ]]; then
    _palisade_here policies "@{(Q)PREFIX}"
  else
    [[ -n $commas ]] && compset -P '*,'
    typed=@{(Q)PREFIX}
    _palisade_list $list
    [[ -n $here && $here != policies ]] && _palisade_here $here "$typed"
  fi
  for each in $offered; do
    each=@{@{@{each//\\:/$'\0'}%%:*}//$'\0'/:}
    [[ $each == *: && $typed == $each* ]] && compset -P "@{(q)each}" && { _files; return }
  done
  # No blank behind what goes on.
  more=(@{(M)offered:#*[=(]:*} @{(M)offered:#*[=(]} @{(M)offered:#*\\:})
  offered=(@{offered:|more})
  (( $#more )) && _describe -t words word more -S '' && ret=0
  if [[ -n $commas ]]; then
    (( $#offered )) && _describe -t words word offered -S , -q && ret=0
  else
    (( $#offered )) && _describe -t words word offered && ret=0
  fi
  [[ -n $files ]] && _files && ret=0
  return ret
}
`.replaceAll("@{", "${");

const END = `
if [[ $funcstack[1] == _palisade ]]; then
  _palisade "$@"
else
  compdef _palisade palisade
fi
`;
