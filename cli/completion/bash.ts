/** Completion for bash, from 3.2 on: the table as `case` branches, in front of what is the same for any table. */
import { VERSION } from "../../runtime/version.ts";
import { FIRST_OPTIONS, type Grammar, type Offer } from "./offers.ts";
import { COMPLETE } from "./hook.ts";

/** The script. */
export function bashScript(grammar: Grammar): string {
  return `# bash completion for palisade ${VERSION}: palisade completion bash
${tables(grammar)}${WORK}`;
}

function tables({ first, groups, commands, words }: Grammar): string {
  const flags = commands.map(({ name, options }) =>
    branch(quoted(name), `flags=(${options.map(({ flag }) => flag).join(" ")})`)
  );
  const lists = [...words].map(([name, list]) =>
    branch(name, `words+=(${list.map(([word]) => quoted(word)).join(" ")})`)
  );
  const members = [...groups].map(([name, list]) =>
    branch(name, `members=(${list.map(([member]) => member).join(" ")})`)
  );
  const repeatable = commands.flatMap(({ name, options }) =>
    options.filter((each) => each.repeatable).map(({ flag }) => quoted(`${name} ${flag}`))
  );
  return `
_palisade_first=(${first.map(([name]) => name).join(" ")})
_palisade_first_flags=(${FIRST_OPTIONS.map(([flag]) => flag).join(" ")})

# The members of a group.
${cases("_palisade_members", members)}
# The options of a command.
${cases("_palisade_flags", flags)}
# Those that may be said again.
${cases("_palisade_repeatable", [`        ${repeatable.join(" | ")}) return 0 ;;`, "        *) return 1 ;;"])}
# Lists of words.
${cases("_palisade_list", lists)}
# What an option takes, or a command as its argument: its list of words, what the program is asked, files, commas, many.
${cases("_palisade_value", values(commands))}`;
}

/** One branch for all that take the same. */
function values(commands: Grammar["commands"]): string[] {
  const places = new Map<string, string[]>();
  const put = (place: string, offer: Offer, many = false) => {
    const { words = "", here = "", files, list } = offer, set = (name: string, on: boolean) => on ? ` ${name}=1` : "";
    const what = `takes=1 list=${words} here=${here}${set("files", files)}${set("commas", list)}${set("many", many)}`;
    places.set(what, [...places.get(what) ?? [], quoted(place)]);
  };
  for (const { name, options, argument } of commands) {
    for (const { flag, offer } of options) if (offer) put(`${name} ${flag}`, offer);
    if (argument) put(name, argument, argument.many);
  }
  return [...places].map(([what, names]) => branch(names.join(" | "), what));
}

function cases(name: string, branches: readonly string[]): string {
  return `${name}() {\n    case $1 in\n${branches.join("\n")}\n    esac\n}\n`;
}

function branch(pattern: string, body: string): string {
  return `        ${pattern}) ${body} ;;`;
}

function quoted(text: string): string {
  return /^[\w./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** Variables of a function are seen by those that it calls. `@{` stands for what a template would take. */
const WORK = String.raw`
# What the program says of this machine; nothing where it can't.
_palisade_here() {
    local program=@{line[0]/#\~/$HOME} each rest
    type -P -- "$program" > /dev/null || program=palisade
    while IFS=$'\t' read -r each rest; do
        words+=("$each")
    done < <("$program" ${COMPLETE} "$1" "$value" 2> /dev/null < /dev/null)
}

# A word to choose, less what stands in front of what readline replaces, and quoted where no quote is open.
_palisade_reply() {
    local reply=$1 start=$quote_at char
    if [[ -z $quote ]]; then
        start=@{#word}
        while ((start > 0)); do
            start=$((start - 1)) char=@{word:start:1}
            [[ $COMP_WORDBREAKS == *"$char"* ]] || continue
            # It goes on to stand in front of the word, or at its beginning.
            [[ $char == [=:] ]] && start=$((start + 1)) && break
            [[ $char == @ ]] && break
        done
    fi
    reply=@{reply:start}
    [[ $reply == *[=:,\(] ]] && compopt -o nospace 2> /dev/null
    [[ -z $quote && $reply == *[!A-Za-z0-9_./,:=@%+-]* ]] && printf -v reply %q "$reply"
    COMPREPLY+=("$reply")
}

# Those of these that begin with what is typed.
_palisade_choose() {
    local typed=$1 before=$2 each
    shift 2
    for each in "$@"; do
        [[ $each == "$typed"* ]] && _palisade_reply "$before$each"
    done
}

# What fits an option or an argument. Where nothing does, and files may stand here, bash has them.
_palisade_offer() {
    local part=$value before= each
    local -a words=()
    if [[ $here == policies && $value == *'('* ]]; then
        _palisade_here policies
    else
        [[ -n $commas ]] && part=@{value##*,} && before=@{value%"$part"}
        _palisade_list "$list"
        [[ -n $here && $here != policies ]] && _palisade_here "$here"
    fi
    for each in "@{words[@]}"; do
        [[ $each == *: && $part == "$each"* ]] && files=1
    done
    _palisade_choose "$part" "$prefix$before" "@{words[@]}"
    # Behind the only choice readline closes the quote, though more is to come.
    [[ -n $quote && @{#COMPREPLY[@]} == 1 && $COMPREPLY == *[=:,\(] ]] && COMPREPLY+=("$COMPREPLY...")
    [[ -n $files ]] || compopt +o default +o bashdefault 2> /dev/null
}

_palisade_offer_flags() {
    local each said
    local -a flags=()
    _palisade_flags "$name"
    for each in "@{flags[@]}"; do
        for said in "@{line[@]}"; do
            [[ @{said%%=*} == "$each" ]] && ! _palisade_repeatable "$name $each" && continue 2
        done
        _palisade_choose "$word" "" "$each"
    done
    compopt +o default +o bashdefault 2> /dev/null
}

_palisade() {
    # Bash takes = and : for ends of words, and has its quotes in them: the line is read anew, up to the cursor.
    local text=@{COMP_LINE:0:COMP_POINT} quote= quote_at=0 word= open= char i
    local -a line=()
    COMPREPLY=()
    for ((i = 0; i < @{#text}; i++)); do
        char=@{text:i:1}
        if [[ $char == \\ && $quote != "'" ]]; then
            i=$((i + 1)) open=1
            word+=@{text:i:1}
        elif [[ -n $quote && $char == "$quote" ]]; then
            quote=
        elif [[ -z $quote && $char == [\"\'] ]]; then
            quote=$char quote_at=@{#word} open=1
        elif [[ -z $quote && $char == [[:space:]] ]]; then
            [[ -n $open ]] && line+=("$word")
            word= open=
        else
            word+=$char open=1
        fi
    done

    local name=@{line[1]} at=2 value=$word prefix= takes= list= here= files= commas= many=
    local -a members=()
    if ((@{#line[@]} == 1)); then
        _palisade_choose "$word" "" "@{_palisade_first[@]}"
        [[ $word == -* ]] && _palisade_choose "$word" "" "@{_palisade_first_flags[@]}"
        compopt +o default +o bashdefault 2> /dev/null
        return
    fi
    _palisade_members "$name"
    if ((@{#members[@]} > 0)); then
        if ((@{#line[@]} == 2)); then
            _palisade_choose "$word" "" "@{members[@]}"
            compopt +o default +o bashdefault 2> /dev/null
            return
        fi
        name+=" @{line[2]}" at=3
    fi

    # Whether an option waits for its value, and how many arguments there are.
    local waiting= arguments=0
    for ((i = at; i < @{#line[@]}; i++)); do
        if [[ -n $waiting ]]; then
            waiting=
        elif [[ @{line[i]} == --* ]]; then
            takes=
            [[ @{line[i]} == *=* ]] || _palisade_value "$name @{line[i]}"
            [[ -n $takes ]] && waiting=@{line[i]}
        else
            arguments=$((arguments + 1))
        fi
    done
    takes= list= here= files= commas= many=
    if [[ -n $waiting ]]; then
        _palisade_value "$name $waiting"
        _palisade_offer
    elif [[ $word == --*=* ]]; then
        prefix=@{word%%=*}= value=@{word#*=}
        _palisade_value "$name @{word%%=*}"
        _palisade_offer
    else
        [[ $word == -* ]] || _palisade_value "$name"
        if [[ -n $takes ]] && ((arguments == 0 || many)); then
            _palisade_offer
        else
            _palisade_offer_flags
        fi
    fi
}

complete -o bashdefault -o default -F _palisade palisade
`.replaceAll("@{", "${");
