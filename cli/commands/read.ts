/** `palisade read`: read a text once, and write what was kept as a snapshot. */
import { checkCacheType } from "../../core/cache/entry_type.ts";
import { resourceError } from "../../core/errors.ts";
import type { Context } from "../../model/context.ts";
import type { Model } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { fileSink } from "../../model/snapshot/bytes.ts";
import { madeWith } from "../../model/snapshot/reuse.ts";
import type { Secret } from "../../model/snapshot/seal/key.ts";
import type { SavedState } from "../../model/snapshot/state.ts";
import { NO_FRAME, resolveFrame } from "../../model/text/frames.ts";
import { checkOutputs } from "../../runtime/output.ts";
import { command } from "../command.ts";
import { ENGINE, startModel } from "../engine.ts";
import { expectedOf } from "../expected.ts";
import { EXIT, EXIT_CODES, type Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { inputsOf, modelInputs, outputsOf, policyInputs } from "../outputs.ts";
import { certificateText } from "../print/certificate.ts";
import { formatBytes } from "../print/format.ts";
import { reportText } from "../print/closing_report.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import {
  BUDGET,
  contextOptions,
  keepAsked,
  noGate,
  type ParsedReading,
  parseReading,
  readContextText,
  typedFrame,
  WORDS,
} from "../reading.ts";
import { givenSecret, headerOf, newSecret, PROTECT, refuseIdleSecret, SECRET } from "../secrets.ts";
import { labelOf, openNamed, PLACE, SALT, SNAPSHOT_FILE, wantCache } from "../snapshots.ts";

const OPTIONS = {
  context: { value: "file", help: "the text, UTF-8; - reads standard input", required: true },
  out: { value: "file", help: "where to write the snapshot instead of keeping it for ask", own: true },
  append: {
    value: "file",
    help: "go on from this snapshot of the text's beginning",
    here: "snapshots",
    conflicts: ["effort"],
  },
  withText: { help: "keep the text's tokens in it, readable" },
  label: { value: "text", help: "what lists call it", shown: "the file's name" },
  ...PROTECT,
  ...SECRET,
  ...BUDGET,
  ...PLACE,
  ...ENGINE,
  ...WORDS,
  ...SALT,
  json: { help: "print one object with figures" },
} satisfies OptionTable;

type Options = Values<typeof OPTIONS>;

/** `palisade read`. */
export const readCommand = command({
  options: OPTIONS,
  notes: [EXIT_CODES],
  run: read,
});

/** Runs the command; returns the exit code. Prints where the snapshot is. Refusals are thrown. */
async function read(options: Options, io: Io): Promise<number> {
  const { system, think, gate } = options, frame = typedFrame(options.frame);
  if (frame !== undefined) resolveFrame(frame);
  refuseIdleSecret(options, !!(options.encrypt || options.cloak || options.append));
  await checkPlaces(options, io);
  const secret = options.encrypt || options.cloak ? await newSecret(options, io) : undefined;
  // Where nothing can be kept, that is known before minutes of reading.
  if (options.out === undefined) await (await wantCache(options, io)).store[Symbol.asyncDispose]?.();
  const before = await secretBefore(options, io, secret);
  const parsed = await parseReading(options, io);
  const text = await readContextText(options.context, io);
  const expected = expectedOf(text, { ...options, keep: parsed.keep });
  using progress = createProgress(io.interactive && !options.quiet);
  const start = performance.now();
  await using model = await startModel(options, io, progress, { system, think, frame, gate, expected });
  const loadMs = performance.now() - start;
  using context = await readText(model, text, io, { options, parsed, progress, secret: before });
  progress.clear();
  const say = (note: string) => io.interactive && !options.quiet && io.err(`${note}\n`);
  const slow = noGate(context.policy, options.model);
  if (slow && !options.policy && !context.effort && context.reused === 0) say(slow);

  const saved = await write(context, options, io, secret);
  const report = reportOf(model, context, [], {
    keepAsked: keepAsked(options, context),
    loadMs,
    memory: io.runtime.memory(),
  });
  const { answer: _, answers: __, ...figures } = report;
  if (options.json) printJson(io, "read", { ...saved, ...figures });
  else io.out(`${saved.file ?? saved.name}\n`);
  if (!options.json && !options.quiet && report.certificate) io.err(`\n${certificateText(report.certificate)}`);
  say(`\nsnapshot ${formatBytes(saved.bytes)}\n${reportText(report)}`.trimEnd());
  return EXIT.ok;
}

/** Refuses places that can't be written before anything is read. */
async function checkPlaces(options: Options, io: Io): Promise<void> {
  const { context, out, model, policy, gate, keyFile, passphraseFile } = options;
  const secrets = [["the key", keyFile], ["the passphrase", passphraseFile]] as const;
  const inputs = inputsOf([["the context", context], ["the gate", gate], ...secrets]);
  const others = [...modelInputs([model], io), ...(policy === undefined ? [] : policyInputs([policy]))];
  // The snapshot that is gone on from is no such input: it may be replaced, and is whole until the new one is.
  await checkOutputs(io.runtime, outputsOf([["--out", out, SNAPSHOT_FILE]]), [...inputs, ...others]);
}

interface Told {
  readonly options: Options;
  readonly parsed: ParsedReading;
  readonly progress: Progress;
  readonly secret?: Secret;
}

/** Opens the header of the snapshot that is to be gone on from, before a model is loaded for it: by which secret. */
async function secretBefore(options: Options, io: Io, secret?: Secret): Promise<Secret | undefined> {
  if (options.append === undefined) return undefined;
  await using snapshot = await openNamed(options.append, options, io);
  return (await headerOf(snapshot, io, secret ?? await givenSecret(options, io))).secret;
}

/** Reads the text, or what is new of it behind the snapshot that is to be gone on from. */
async function readText(model: Model, text: string, io: Io, told: Told): Promise<Context> {
  if (told.options.append === undefined) return await openContext(model, text, readingOf(told, io));
  return await goOn(model, text, io, told);
}

function readingOf({ options, parsed, progress }: Told, io: Io): ContextOptions {
  return { ...contextOptions(options, parsed, io, progress), salt: options.salt };
}

async function goOn(model: Model, text: string, io: Io, { secret, ...reading }: Told): Promise<Context> {
  const { options } = reading, told = readingOf(reading, io);
  await using snapshot = await openNamed(options.append!, options, io);
  const { identity, state, keep, bytes } = await madeWith(snapshot, { runtime: model.runtime, secret });
  return await openContext(model, text, {
    ...told,
    policy: told.policy ?? state.policy,
    ...(told.bytes === undefined && { keep: told.keep ?? keep }),
    ...(told.keep === undefined && { bytes: told.bytes ?? bytes }),
    cacheType: told.cacheType ?? checkCacheType(identity.cacheType),
    positions: told.positions ?? (identity.positions === "rerotate" ? "rerotate" : "true"),
    frame: typedFrame(options.frame) ?? frameOf(state),
    snapshot,
    secret,
  });
}

function frameOf({ frame: { name, text } }: SavedState): string {
  return name === NO_FRAME ? NO_FRAME : text;
}

/** Where a snapshot is, and how large. */
interface Saved {
  readonly file: string | null;
  readonly name: string | null;
  readonly bytes: number;
}

/** Writes the file, or keeps the snapshot for `ask`. @throws PalisadeError resources `snapshot.too-large`. */
async function write(context: Context, options: Options, io: Io, secret?: Secret): Promise<Saved> {
  const { out, withText, label = labelOf(options.context), encrypt, cloak } = options;
  const secrets = { ...(encrypt && { encrypt: secret }), ...(cloak && { cloak: secret }) };
  const save = { withText, label, ...secrets, signal: io.signal };
  if (out !== undefined) {
    await context.save(fileSink(io.runtime, out), save);
    return { file: out, name: null, bytes: (await io.runtime.host!.info(out))!.size };
  }
  const cache = await wantCache(options, io);
  await using store = cache.store;
  const name = await cache.keep(context, save);
  if (name !== undefined) return { file: null, name, bytes: (await store.head(name))!.size };
  const reason = `${formatBytes(cache.maxBytes)} are too little, or ${context.tokens} tokens too few`;
  throw resourceError("snapshot.not-kept", `Can't keep it in ${store.place}: ${reason}; write it with --out`, "--out");
}
