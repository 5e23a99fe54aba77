/**
 * Keeps everything and reads a part: FASA, arXiv 2602.03152. RoPE turns a key's channels in pairs, *frequency chunks*, and a
 * logit is the sum over them; a few chunks of a head agree with all of them about which entries score highest. Which those
 * are is found once for a model (`palisade calibrate` for `fasa`). Then each generated token looks for `entries` entries by
 * those chunks alone, and attends to these. Nothing is lost: the next token may choose others.
 *
 * Ours: a KV head's query heads choose together, by how little an entry is below the best of the head where that is least;
 * sinks and recent entries are always read; questions, whose tokens come together, read everything.
 */
import { inputError, option } from "../errors.ts";
import { definePolicy } from "../policy/define.ts";
import { SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

/** What `file` is where the model's own is looked for. */
const OWN_FILE = "own";

export const fasa = definePolicy({
  name: "fasa",
  parameters: [
    { name: "entries", type: "integer", default: 256, min: 1 },
    {
      name: "chunks",
      type: "number",
      default: 0.25,
      min: 0.001,
      max: 1,
    },
    { name: "file", type: "text", default: OWN_FILE },
    SINKS,
    WINDOW,
  ],
  needs: ({ entries, chunks, sinks, window, file }) => ({
    foresight: { entries, chunks, sinks, recent: window },
    ...(file !== OWN_FILE && { file: { kind: "chunks", name: file } }),
  }),
  allocate: { kind: "all" },
  check({ entries, sinks, window }) {
    if (sinks + window <= entries) return;
    const message = `fasa can't read ${entries} entries with ${sinks} sinks and the last ${window} among them`;
    throw inputError("policy.fasa", message, option("policy"));
  },
  score: (_, { model, length }) => ({ scores: new Float32Array(model.kvHeads * length) }),
});

export const about: PolicyAbout = {
  summary: "Keeps every entry; each generated token reads those that a few frequency chunks choose",
  paper: "Wang et al. 2026, arXiv 2602.03152",
  source: "our own, after the paper",
  help: {
    entries: "entries of each head that a token reads",
    chunks: "share of the frequency chunks that choose",
    file: "chunks that palisade calibrate found",
    window: "last entries that are always read",
  },
};
