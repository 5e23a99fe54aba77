/** What shells offer when Tab is pressed, asked of real ones. */
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { type ChildResult, runChild } from "../../tools/child.ts";

const MAIN = fileURLToPath(new URL("../../cli/main.ts", import.meta.url));
const MARK = "@@";

/** A folder for a shell: `palisade` on its PATH, its script, files to complete, and a cache folder. */
export interface ShellRoom {
  readonly folder: string;
  readonly script: string;
  readonly env: Record<string, string | undefined>;
}

/** Lays the room out below `folder`. */
export async function shellRoom(folder: string, script: string, files: readonly string[]): Promise<ShellRoom> {
  const bin = join(folder, "bin"), cache = join(folder, "cache"), path = join(folder, "script");
  for (const each of [bin, cache, join(folder, "books")]) await mkdir(each, { recursive: true });
  for (const name of files) await writeFile(join(folder, name), "");
  await writeFile(join(bin, "palisade"), `#!/bin/sh\nexec "${Deno.execPath()}" run -A --no-check "${MAIN}" "$@"\n`);
  await chmod(join(bin, "palisade"), 0o755);
  await writeFile(path, script);
  const PATH = `${bin}${delimiter}${process.env["PATH"]}`;
  const env = { PATH, PALISADE_CACHE: cache, PALISADE_SNAPSHOTS: undefined, HOME: folder, XDG_CONFIG_HOME: undefined };
  return { folder, script: path, env };
}

/** Runs a program of a shell's in the room; standard error must be empty. */
async function inRoom(room: ShellRoom, shell: string, args: readonly string[], env = {}): Promise<string> {
  const options = { cwd: room.folder, env: { ...room.env, ...env }, timeout: 60 };
  const { code, stdout, stderr }: ChildResult = await runChild(shell, args, options);
  if (code !== 0 || stderr !== "") throw new Error(`${shell} ended with ${code}: ${stdout}${stderr}`);
  return stdout;
}

/** For each line what bash's function offers, as readline gets it, with the cursor at its end. */
export async function bashOffers(room: ShellRoom, lines: readonly string[]): Promise<string[][]> {
  const program = String.raw`
    shopt -s extglob
    source "$1"; shift
    [[ $(complete -p palisade) == 'complete -o bashdefault -o default -F _palisade palisade' ]] || exit 9
    COMP_WORDBREAKS=$' \t\n"\'@><=;|&(:'
    for COMP_LINE in "$@"; do
      COMP_POINT=${"${#COMP_LINE}"} COMPREPLY=()
      _palisade palisade
      ((${"${#COMPREPLY[@]}"})) && printf '%s\n' "${"${COMPREPLY[@]}"}"
      echo ${MARK}
    done`;
  return answers(await inRoom(room, "bash", ["--norc", "-c", program, "bash", room.script, ...lines]));
}

/** For each line what fish offers: words, with what they mean behind a tab. */
export async function fishOffers(room: ShellRoom, lines: readonly string[]): Promise<string[][]> {
  const program = `source $argv[1]; for line in $argv[2..-1]; complete -C "$line"; echo ${MARK}; end`;
  return answers(await inRoom(room, "fish", ["--no-config", "-c", program, room.script, ...lines]));
}

/** What zsh shows and what the line has become after each Tab, the shell sitting at a terminal of its own. */
export async function zshLines(room: ShellRoom, lines: readonly string[]): Promise<{ line: string; shown: string }[]> {
  const program = String.raw`
    zmodload zsh/zpty
    zpty z zsh -f -i
    zpty -w z "PS1= RPS1= LISTMAX=0; unsetopt zle_bracketed_paste 2>/dev/null; stty cols 250 rows 200; zstyle ':completion:*' verbose yes"
    zpty -w z 'show() { zle -I; print -r -- "${MARK}$BUFFER${MARK}"; BUFFER= }; zle -N show; bindkey "^]" show'
    zpty -w z "autoload -Uz compinit; compinit -u -D; source $1; print RE''ADY"
    zpty -r z seen $'*READY\r\n*'
    shift
    for line in "$@"; do
      zpty -n -w z "$line"$'\t\x1d'
      zpty -r z seen '*${MARK}*${MARK}*'
      print -r -- "$seen"
      print -r -- '===='
    done
    zpty -d z`;
  const out = await inRoom(room, "zsh", ["-f", "-c", program, "zsh", room.script, ...lines], { TERM: "dumb" });
  return out.split("====\n").slice(0, -1).map((each) => {
    const [shown, line] = each.split(MARK);
    return { shown, line };
  });
}

function answers(text: string): string[][] {
  return text.split(`${MARK}\n`).slice(0, -1).map((each) => each.split("\n").filter((line) => line !== ""));
}
