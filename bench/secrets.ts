/**
 * What sealing and cloaking snapshots cost, and what three attacks find in plain, cloaked and sealed ones. Arguments:
 * model's file, kind (`attacks`, `cost`), tokens a text, texts. Prints JSON lines; kept figures: results/secrets.md.
 */
import process from "node:process";
import { copyHeads } from "../core/backend/copy_heads.ts";
import { openHaystack } from "../evaluate/tasks/haystack.ts";
import { loadModel, type Model } from "../model/model.ts";
import { type Context, openContext } from "../model/session.ts";
import { contextIds } from "../model/text/prompt.ts";
import { MemorySink } from "../model/snapshot/bytes.ts";
import { CloakedRest } from "../model/snapshot/cloak/at_rest.ts";
import { Cloak, newSalt } from "../model/snapshot/cloak/cloak.ts";
import { keySecret, passphraseSecret } from "../model/snapshot/seal/key.ts";
import type { SaveOptions } from "../model/snapshot/save.ts";
import { openSealed, sealSink } from "../model/snapshot/seal/seal.ts";
import { bufferSource, currentRuntime } from "../runtime/mod.ts";
import { adapt } from "./secrets/adaptive.ts";
import {
  collide,
  collideNearest,
  type FirstLayer,
  firstLayerOf,
  inject,
  invert,
  rougeRecall,
  shareFound,
} from "./secrets/attacks.ts";
import {
  asBlocks,
  bytesAsRows,
  cloakedAlone,
  noRows,
  type Stolen,
  type StolenHead,
  stolenRows,
} from "./secrets/stolen.ts";

const [path, kind = "attacks", length = "48", texts = "2"] = process.argv.slice(2);
const KEY = keySecret(crypto.getRandomValues(new Uint8Array(32)));
const runtime = await currentRuntime();

async function saved(context: Context, options?: SaveOptions): Promise<Uint8Array<ArrayBuffer>> {
  const sink = new MemorySink();
  await context.save(sink, options);
  return sink.bytes();
}

/** Parts of a book, of so many tokens each. */
async function parts(model: Model, count: number, tokens: number): Promise<string[]> {
  const { sentences } = await openHaystack(runtime), all: string[] = [];
  for (let at = 200; all.length < count; at += 400) {
    const ids = model.tokenizer.encode(sentences.slice(at, at + tokens).join(" ")).slice(0, tokens);
    all.push(model.tokenizer.decode(ids));
  }
  return all;
}

const ATTACKS = ["inverted", "collided", "nearest", "injected", "adapted"] as const;
/** Without words around the text, so many of its own tokens are known to the one who adapts. */
const KNOWN = 4;

async function attackAll(model: Model): Promise<void> {
  const layer = await firstLayerOf(model),
    sums = new Map<string, Record<typeof ATTACKS[number], number>>();
  const all = await parts(model, Number(texts), Number(length));
  for (const text of all) {
    for (const [what, ids, first, stolen, blocks] of await thefts(model, text)) {
      const shares = {
        ...await attack(model, layer, stolen, { ids, first }),
        adapted: adapted(model, layer, blocks, ids, first),
      };
      const sum = sums.get(what) ?? { inverted: 0, collided: 0, nearest: 0, injected: 0, adapted: 0 };
      for (const name of ATTACKS) sum[name] += shares[name] / all.length;
      sums.set(what, sum);
      console.error(JSON.stringify({ what, ...shares }));
    }
  }
  for (const [what, shares] of sums) console.log(JSON.stringify({ what, ...shares }));
}

/** `blocks`: the first layer's rows for the attack on the cloak. */
type Theft = [what: string, ids: readonly number[], first: number, stolen: Stolen, blocks: readonly StolenHead[]];

async function thefts(model: Model, text: string): Promise<Theft[]> {
  const ids = contextIds(model.frame, model.tokenizer, text), all: Theft[] = [];
  for (const [name, keep] of [["all", "100%"], ["50 %", "50%"]]) {
    using context = await openContext(model, text, { policy: keep === "100%" ? "full" : "layer-defensive", keep });
    // Tokens of the words around the text are everyone's.
    const first = model.tokenizer.encode(text).length < ids.length
      ? prefixOf(ids, contextIds(model.frame, model.tokenizer, "zebra"))
      : 0;
    if (keep === "100%") {
      all.push([
        "no rows at all",
        ids,
        first,
        noRows(model.config, ids.length),
        asBlocks(noRows(model.config, ids.length)[0], model.config.headDim),
      ]);
    }
    for (const [way, options] of [["plain", {}], ["cloaked", { cloak: KEY }], ["sealed", { encrypt: KEY }]] as const) {
      const bytes = await saved(context, options);
      const stolen = way === "sealed"
        ? bytesAsRows(bytes, model.config, ids.length)
        : await stolenRows(bytes, runtime, model.config);
      const { headDim } = model.config, blocks = asBlocks(stolen[0], headDim);
      all.push([`${way}, ${name} kept`, ids, first, stolen, blocks]);
      if (way !== "plain") continue;
      const alone = await cloakedAlone(stolen[0], KEY, headDim);
      all.push([`KV-Cloak alone, ${name} kept`, ids, first, await cloakedLayers(stolen, headDim), alone]);
    }
  }
  return all;
}

/** All layers under KV-Cloak alone, the first rows of each head. */
async function cloakedLayers(stolen: Stolen, headDim: number): Promise<Stolen> {
  return await Promise.all(stolen.map(async (heads) =>
    (await cloakedAlone(heads, KEY, headDim)).map((head) => {
      const first = (rows: Float32Array) => rows.slice(0, head.positions.length * headDim);
      return { ...head, keys: first(head.keys), values: first(head.values) };
    })
  ));
}

function prefixOf(a: readonly number[], b: readonly number[]): number {
  let same = 0;
  while (a[same] === b[same]) same++;
  return same;
}

async function attack(
  model: Model,
  layer: FirstLayer,
  stolen: Stolen,
  { ids, first }: { readonly ids: readonly number[]; readonly first: number },
) {
  const inverted = shareFound(ids, invert(model, layer, stolen), first);
  const collided = shareFound(ids, await collide(model, layer, stolen, ids.length), first);
  const nearest = shareFound(ids, collideNearest(model, layer, stolen), first);
  const said = await inject(model, stolen, ids.length, ids.length - first);
  return { inverted, collided, nearest, injected: rougeRecall(ids.slice(first), said) };
}

/** Share of what is not known that the attack on the cloak finds. */
function adapted(
  model: Model,
  layer: FirstLayer,
  blocks: readonly StolenHead[],
  ids: readonly number[],
  first: number,
): number {
  const known = Math.max(first, KNOWN);
  return shareFound(ids, adapt(model, layer, blocks, new Map(ids.slice(0, known).entries())), known);
}

async function cost(model: Model): Promise<void> {
  const [text] = await parts(model, 1, Number(length));
  for (const cacheType of ["f32", "f16", "int8"] as const) {
    using context = await openContext(model, text, { policy: "layer-defensive", keep: "20%", cacheType });
    const { cache, tokens } = context, entries = cache.entries(), { layers, kvHeads } = model.config;
    const perToken = entries / (layers * kvHeads);
    console.log(JSON.stringify({ cacheType, tokens, keptPerHead: perToken, ...await sizes(context) }));
    console.log(JSON.stringify({ cacheType, ...await attentionErrors(context) }));
    if (cacheType === "f32") await times(model, context, text, perToken);
  }
}

async function sizes(context: Context) {
  const of = async (options?: SaveOptions) => (await saved(context, options)).length;
  return { plain: await of(), sealed: await of({ encrypt: KEY }), cloaked: await of({ cloak: KEY }) };
}

async function timed<T>(work: () => Promise<T>, runs = 5): Promise<{ ms: number; value: T }> {
  let best = Infinity, value: T | undefined;
  for (let i = 0; i < runs; i++) {
    const start = performance.now();
    value = await work();
    best = Math.min(best, performance.now() - start);
  }
  return { ms: best, value: value! };
}

async function times(model: Model, context: Context, text: string, perToken: number): Promise<void> {
  const ask = async (from: Context) => {
    const start = performance.now(), { ms } = await from.ask("Who is it about?", { maxTokens: 16, allowLoops: true });
    return { first: performance.now() - start - ms.decodePerToken * 15, perToken: ms.decodePerToken };
  };
  const plain = await timed(() => saved(context)), sealed = await timed(() => saved(context, { encrypt: KEY }));
  const cloaked = await timed(() => saved(context, { cloak: KEY }));
  const opening = (bytes: Uint8Array<ArrayBuffer>) =>
    timed(async () => (await model.restore(bufferSource(bytes), { secret: KEY }))[Symbol.dispose]());
  const restores = [
    (await opening(plain.value)).ms,
    (await opening(sealed.value)).ms,
    (await opening(cloaked.value)).ms,
  ];
  const phrase = passphraseSecret("seventeen stakes");
  const worded = await timed(async () => {
    const sink = new MemorySink(), seal = await sealSink(sink, phrase);
    await seal.commit();
    return sink.bytes();
  }, 2);
  const opened = await timed(() => openSealed(bufferSource(worded.value), phrase), 2);
  const refused = await timed(() =>
    openSealed(bufferSource(sealed.value), keySecret(new Uint8Array(32))).catch(() => {})
  );
  const before = await timed(() => ask(context), 3);
  const covered = await timed(() => CloakedRest.of(context.cache), 1);
  const uncovered = await timed(() => covered.value.awake(() => Promise.resolve()), 5);
  using resting = await openContext(model, text, { policy: "layer-defensive", keep: "20%", cloak: true });
  const after = await timed(() => ask(resting), 3);
  console.log(JSON.stringify({
    save: { plain: plain.ms, sealed: sealed.ms, cloaked: cloaked.ms },
    restore: { plain: restores[0], sealed: restores[1], cloaked: restores[2] },
    perKeptToken: { cover: covered.ms / perToken, uncover: uncovered.ms / perToken },
    rest: { cover: covered.ms, uncover: uncovered.ms },
    ask: { plain: before.value, resting: after.value },
    passphrase: { make: worded.ms, open: opened.ms },
    wrongKeyRefused: refused.ms,
  }));
}

/** Of attention by each kept key as a query, over uncloaked rows against those that were cloaked. */
async function attentionErrors({ cache }: Context) {
  const { layers, headDim } = cache.shape, cloak = await Cloak.of(KEY, newSalt());
  let [rowError, worst, sum, count] = [0, 0, 0, 0];
  for (let layer = 0; layer < layers; layer += 5) {
    for (const [head, rows] of (await copyHeads(cache.rows(layer))).entries()) {
      const back = await cloak.uncover(layer, head, await cloak.cover(layer, head, rows, headDim), headDim);
      rowError = Math.max(rowError, relative(rows.keys, back.keys), relative(rows.values, back.values));
      for (let row = 0; row < rows.keys.length / headDim; row += 7) {
        const query = rows.keys.subarray(row * headDim, (row + 1) * headDim);
        const error = relative(attended(query, rows, headDim), attended(query, back, headDim));
        [worst, sum, count] = [Math.max(worst, error), sum + error, count + 1];
      }
    }
  }
  return { rowError, attentionWorst: worst, attentionMean: sum / count, queries: count };
}

function attended(query: Float32Array, { keys, values }: { keys: Float32Array; values: Float32Array }, width: number) {
  const rows = keys.length / width, logits = new Float64Array(rows), out = new Float64Array(width);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < width; i++) logits[row] += query[i] * keys[row * width + i] / Math.sqrt(width);
  }
  const most = Math.max(...logits), total = logits.reduce((all, x) => all + Math.exp(x - most), 0);
  for (let row = 0; row < rows; row++) {
    const share = Math.exp(logits[row] - most) / total;
    for (let i = 0; i < width; i++) out[i] += share * values[row * width + i];
  }
  return out;
}

/** Largest difference as a share of the largest magnitude. */
function relative(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [off, largest] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    [off, largest] = [Math.max(off, Math.abs(a[i] - b[i])), Math.max(largest, Math.abs(a[i]))];
  }
  return off / (largest || 1);
}

await using model = await loadModel(path, runtime, { dense: "wasm", backend: "wasm" });
await (kind === "cost" ? cost(model) : attackAll(model));
