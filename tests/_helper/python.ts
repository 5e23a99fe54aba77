/** A Python with the packages that a test needs: `python3`, or what PALISADE_PYTHON names. */
import process from "node:process";
import { type ChildOptions, type ChildResult, runChild } from "../../tools/child.ts";

const PYTHON = process.env["PALISADE_PYTHON"] || "python3";

/** Whether these packages are there (`tools/install_test_tools.sh` brings numpy, safetensors, gguf, torch and transformers). */
export async function hasPython(...packages: readonly string[]): Promise<boolean> {
  return (await runPython(["-c", `import ${packages.join(", ")}`])).code === 0;
}

export function runPython(args: readonly string[], options: ChildOptions = {}): Promise<ChildResult> {
  // Bytecode would lie around in the checkout.
  const env = { PYTHONDONTWRITEBYTECODE: "1", ...options.env };
  return runChild(PYTHON, args, { timeout: 300, ...options, env });
}
