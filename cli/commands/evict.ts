/** `palisade evict`: which entries stay, from keys and values that another program has written down. */
import { type EvictedLayer, evictLayers } from "../../core/dump/layers.ts";
import { inputError, PalisadeError } from "../../core/errors.ts";
import { parseKeep } from "../../core/select/budget.ts";
import { dumpFiles, openDump } from "../../model/dump/open.ts";
import { Dump, type DumpRope, type NotFinite } from "../../model/dump/layers.ts";
import { parsePatterns, PARTS } from "../../model/dump/names.ts";
import { DecisionLines, DECISIONS, decisionsFile } from "../../model/dump/decisions.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { HOST_BACKENDS } from "../../model/device.ts";
import { measureBy } from "../../model/dump/kernels.ts";
import { refuseRivals } from "../../model/read/plan.ts";
import { checkTarget, loadGate } from "../../model/gate/find.ts";
import { loadPolicy } from "../../model/policy_files/policy_files.ts";
import { hold } from "../../runtime/breathe.ts";
import { checkOutputs, writeWhole } from "../../runtime/output.ts";
import { command } from "../command.ts";
import { EXIT, EXIT_CODES, type Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import { type OptionTable, repeated, share, type Values } from "../options.ts";
import { inputsOf, outputsOf, policyInputs } from "../outputs.ts";
import { createProgress } from "../print/progress.ts";
import { policyWords } from "../words.ts";

const OPTIONS = {
  policy: {
    value: "name",
    help: "see: palisade policies",
    preset: DEFAULTS.dumpPolicy,
    words: policyWords,
    here: "policies",
  },
  keep: { value: "amount", help: "what stays: 20%, 0.2, or tokens per head", shown: DEFAULTS.keep },
  risk: { value: "share", help: "instead: largest loss of attention, mean", read: share, conflicts: ["keep"] },
  explain: { help: "with each head's certificate: what it can have cost" },
  names: {
    value: "part=name",
    help: `{layer} in it; ${PARTS.slice(0, 6).join(", ")}, …`,
    read: repeated,
    words: partWords,
  },
  rope: { value: "theta", help: "[,interleaved][,DIMS]: how q and k were turned", read: ropeOf },
  gate: { value: "file", help: "for policy gate, with hidden in the dump" },
  backend: { value: "name", help: "what measures", choices: HOST_BACKENDS, preset: DEFAULTS.backend },
  write: { value: "file", help: "there instead: .safetensors, .npy or .jsonl" },
  quiet: { help: "no progress, no notes" },
  json: { help: "with --write: print what was written, as JSON" },
} satisfies OptionTable;

type Options = Values<typeof OPTIONS>;

function partWords(): readonly string[] {
  return PARTS.map((part) => `${part}=`);
}

/** `palisade evict`. */
export const evictCommand = command({
  argument: "<dump>",
  files: true,
  options: OPTIONS,
  notes: ["A .safetensors, .npy or .npz file, a folder of them, or - for a pipe.", EXIT_CODES],
  run: evict,
});

/** Runs the command; returns the exit code. Refusals are thrown, all but those of a broken file before any output. */
async function evict(options: Options, io: Io, [path]: readonly string[]): Promise<number> {
  await checkPlace(options, io, path);
  const policy = await loadPolicy(options.policy, io.runtime);
  const keep = parseKeep(options.keep ?? DEFAULTS.keep);
  refuseRivals(policy, (["keep", "risk"] as const).filter((name) => options[name] !== undefined));
  if (options.gate !== undefined && !policy.needs.gate) {
    throw new PalisadeError("usage", "gate.alone", "Nothing asks a gate: add --policy gate", { where: "--gate" });
  }
  const gate = options.gate === undefined ? undefined : await loadGate(options.gate, io.runtime);
  if (gate) checkTarget(gate, policy.needs.gate ?? true);
  const patterns = parsePatterns(options.names ?? []), { signal } = io, { rope, risk, explain } = options;
  using progress = createProgress(io.interactive && !options.quiet);
  await using dump = await Dump.open(await openDump(path, io.runtime, signal), { patterns, rope, gate, signal });
  dump.prepare(policy, { explain, risk });
  const onLayer = (done: number, layers: number) => progress.update("Reading, layer", done, layers);
  const results = new Results(options, io, dump);
  const measure = await measureBy(options.backend, dump, policy, { explain, signal });
  for await (const layer of evictLayers(policy, dump, { keep, risk, explain, signal, onLayer, hold, measure })) {
    results.add(layer);
  }
  progress.clear();
  await results.end();
  return EXIT.ok;
}

/** The output goes where nothing is harmed: known before the dump is read. */
async function checkPlace({ write, policy, gate }: Options, io: Io, path: string): Promise<void> {
  const files = await dumpFiles(path, io.runtime);
  await checkOutputs(io.runtime, outputsOf([["--write", write, DECISIONS]]), [
    ...files.map((file) => ({ path: file, what: "the dump" })),
    ...policyInputs([policy]),
    ...inputsOf([["the gate", gate]]),
  ]);
  if (write !== undefined && !decisionsFile(write)) {
    throw inputError(
      "evict.write",
      `Can't write ${write}: want a name that ends in .safetensors, .npy or .jsonl`,
      "--write",
    );
  }
}

/** `theta`, `theta,interleaved`, `theta,half,64`. */
function ropeOf(text: string): DumpRope {
  const match = /^(\d+(?:\.\d+)?(?:e\d+)?)(?:,(half|interleaved))?(?:,(\d{1,4}))?$/.exec(text);
  if (!match || !(Number(match[1]) > 0)) {
    throw new RangeError("Want the base of the frequencies, e.g. 10000 or 500000,interleaved,64.");
  }
  const [, theta, pairs, rotated] = match;
  return {
    theta: Number(theta),
    ...(pairs && { pairs: pairs as DumpRope["pairs"] }),
    ...(rotated && { rotated: Number(rotated) }),
  };
}

/** Where decisions go: to standard output as they come, or into a file at the end. */
class Results {
  readonly #options: Options;
  readonly #io: Io;
  readonly #dump: Dump;
  readonly #lines: DecisionLines;
  readonly #layers: EvictedLayer[] = [];

  constructor(options: Options, io: Io, dump: Dump) {
    this.#options = options;
    this.#io = io;
    this.#dump = dump;
    this.#lines = new DecisionLines(dump);
  }

  add(layer: EvictedLayer): void {
    if (this.#options.write === undefined) this.#io.out(this.#lines.of(layer));
    else this.#layers.push(layer);
  }

  async end(): Promise<void> {
    const { write, quiet, json } = this.#options, { runtime, err } = this.#io;
    if (write !== undefined) {
      const bytes = decisionsFile(write)!(this.#layers, this.#dump);
      await writeWhole(runtime, write, bytes);
      if (json) this.#tellWritten(write, bytes.length);
    }
    const odd = this.#dump.numbers.flatMap((number, layer) => {
      return oddities(this.#dump.notFinite(layer)).map((each) => `${each} in layer ${number}`);
    });
    if (odd.length === 0 || quiet) return;
    err(`palisade: numbers that are not finite: ${odd.slice(0, 8).join(", ")}${odd.length > 8 ? ", …" : ""}\n`);
  }

  #tellWritten(file: string, bytes: number): void {
    const heads = this.#layers.flatMap(({ kept }) => kept), { numbers } = this.#dump;
    const odd = numbers.map((number, layer) => ({ layer: number, ...this.#dump.notFinite(layer) }));
    printJson(this.#io, "evict", {
      file,
      bytes,
      layers: this.#layers.length,
      heads: heads.length,
      kept: heads.reduce((sum, { length }) => sum + length, 0),
      notFinite: odd.filter((each) => Object.keys(each).length > 1),
    });
  }
}

function oddities(counts: NotFinite): string[] {
  return Object.entries(counts).map(([part, count]) => `${count} of ${part}`);
}
