/** What was decided of a dump, written down: a line a head, or the positions as numbers. */
import { concatenate } from "../../core/concatenate.ts";
import type { EvictedLayer } from "../../core/dump/layers.ts";
import { type CertificateSummary, type HeadCertificate, summariseHead } from "../../core/worst_case/certificate.ts";
import type { OutputKind } from "../../runtime/output.ts";
import { writeSafetensors } from "../file/safetensors.ts";
import type { Dump, NotFinite } from "./layers.ts";
import { NPY_MAGIC, writeNpy } from "./npy.ts";

/** In the metadata of what we write. */
const KEY = "palisade_kept";
const TRIPLES = /'descr': '<i4', 'fortran_order': False, 'shape': \(\d+, 3\)/;
const LINE_START = '{"layer":';

/** One KV head of one layer of a dump: which entries stay. */
export interface Decision {
  /** The layer's number in the dump. */
  readonly layer: number;
  /** KV head. */
  readonly head: number;
  /** Entries that stay. */
  readonly count: number;
  /** Their positions, ascending. */
  readonly kept: readonly number[];
  /** What the eviction can have cost, where it was asked for. */
  readonly certificate?: HeadCertificateLine;
  /** Numbers that are not finite, in each part of this layer that has any. */
  readonly notFinite?: NotFinite;
}

/** A head's certificate. */
export interface HeadCertificateLine extends CertificateSummary {
  readonly evicted: number;
  /** Evicted entries of the window itself, of which no importance is known. */
  readonly unobserved: number;
}

type Writer = (layers: readonly EvictedLayer[], dump: Dump) => Uint8Array<ArrayBuffer>;

/** Writes the lines of one dump: `{"layer":0,"head":1,"count":60,"kept":[…],"certificate":{…}}`. */
export class DecisionLines {
  readonly #dump: Pick<Dump, "numbers" | "notFinite">;

  constructor(dump: Pick<Dump, "numbers" | "notFinite">) {
    this.#dump = dump;
  }

  /** A line for each KV head, with line breaks. Figures that can't be known are null. */
  of({ layer, kept, certificate }: EvictedLayer): string {
    const notFinite = this.#dump.notFinite(layer), number = this.#dump.numbers[layer];
    return kept.map((positions, head) => {
      const line: Decision = {
        layer: number,
        head,
        count: positions.length,
        kept: [...positions],
        ...(certificate && { certificate: certificateOf(certificate.heads[head]) }),
        ...(Object.keys(notFinite).length > 0 && { notFinite }),
      };
      return `${JSON.stringify(line)}\n`;
    }).join("");
  }
}

function certificateOf(head: HeadCertificate): HeadCertificateLine {
  const { evicted, unobserved } = head;
  return { evicted, unobserved, ...summariseHead(head) };
}

/** By the ending of a file's name, what makes its bytes; undefined for other endings. */
export function decisionsFile(path: string): Writer | undefined {
  return WRITERS[/\.(safetensors|npy|jsonl)$/.exec(path)?.[1] as keyof typeof WRITERS];
}

const WRITERS: Readonly<Record<"safetensors" | "npy" | "jsonl", Writer>> = {
  /** `layers/N/counts`, I32 `[kvHeads]`, and `layers/N/kept`, I32 `[Σ counts]`, head after head. */
  safetensors: (layers, { numbers }) => {
    const tensors = layers.flatMap(({ layer, kept }) => {
      const all = concatenate(kept, Int32Array), counts = Int32Array.from(kept, ({ length }) => length);
      return [
        { name: `layers/${numbers[layer]}/counts`, dtype: "I32", shape: [counts.length], data: counts } as const,
        { name: `layers/${numbers[layer]}/kept`, dtype: "I32", shape: [all.length], data: all } as const,
      ];
    });
    return writeSafetensors(tensors, { [KEY]: "1" });
  },
  /** int32 `[entries, 3]`: layer, KV head, position. */
  npy: (layers, { numbers }) => {
    const rows = layers.flatMap(({ layer, kept }) => kept.map((head, h) => triples(numbers[layer], h, head)));
    const all = concatenate(rows, Int32Array);
    return writeNpy(all, [all.length / 3, 3]);
  },
  jsonl: (layers, dump) => {
    const lines = new DecisionLines(dump);
    return new TextEncoder().encode(layers.map((layer) => lines.of(layer)).join(""));
  },
};

function triples(layer: number, head: number, positions: Int32Array): Int32Array {
  const rows = new Int32Array(3 * positions.length);
  positions.forEach((position, i) => rows.set([layer, head, position], 3 * i));
  return rows;
}

/** What may be replaced: decisions that we wrote. */
export const DECISIONS: OutputKind = {
  name: "decisions of palisade evict",
  async problem(file) {
    const bytes = await file.read(0, Math.min(file.size, 256)), text = new TextDecoder("latin1").decode(bytes);
    const ours = text.startsWith(LINE_START) || text.slice(8).startsWith(`{"__metadata__":{"${KEY}"`) ||
      (NPY_MAGIC.every((byte, i) => bytes[i] === byte) && TRIPLES.test(text));
    return ours ? undefined : "it begins otherwise";
  },
};
