/** `palisade completion`: a script for a shell, written from the table of options. */
import { inputError } from "../../core/errors.ts";
import { adviceFor } from "../../core/policy/nearest_name.ts";
import { bashScript } from "../completion/bash.ts";
import { fishScript } from "../completion/fish.ts";
import { type Grammar, grammarOf } from "../completion/offers.ts";
import { powershellScript } from "../completion/powershell.ts";
import { zshScript } from "../completion/zsh.ts";
import { command } from "../command.ts";
import { EXIT, EXIT_CODES, type Io } from "../io.ts";
import { JSON_SWITCH, printJson } from "../json/print.ts";
import { allCommands } from "../list.ts";
import type { Values } from "../options.ts";

const SCRIPTS: Readonly<Record<string, (grammar: Grammar) => string>> = {
  bash: bashScript,
  zsh: zshScript,
  fish: fishScript,
  powershell: powershellScript,
};

/** Shells that there is a script for. */
export const SHELLS: readonly string[] = Object.keys(SCRIPTS);

/** `palisade completion`. */
export const completionCommand = command({
  argument: "<shell>",
  words: () => SHELLS,
  options: JSON_SWITCH,
  notes: [
    'bash, in ~/.bashrc:      eval "$(palisade completion bash)"',
    'zsh, in ~/.zshrc:        eval "$(palisade completion zsh)", behind compinit',
    "fish:                    palisade completion fish \\",
    "                           > ~/.config/fish/completions/palisade.fish",
    "PowerShell, in $PROFILE: palisade completion powershell | Out-String |",
    "                           Invoke-Expression",
    EXIT_CODES,
  ],
  run: complete,
});

/** Prints the script. @throws PalisadeError input `completion.shell`. */
async function complete({ json }: Values<typeof JSON_SWITCH>, io: Io, [shell]: readonly string[]): Promise<number> {
  if (!Object.hasOwn(SCRIPTS, shell)) throw unknownShell(shell);
  const script = SCRIPTS[shell](await grammarOf(await allCommands()));
  if (json) printJson(io, "completion", { shell, script });
  else io.out(script);
  return EXIT.ok;
}

function unknownShell(shell: string): Error {
  const advice = adviceFor(shell, SHELLS, `want one of ${SHELLS.join(", ")}`);
  return inputError("completion.shell", `There is no completion for ${shell}: ${advice}`, "shell");
}
