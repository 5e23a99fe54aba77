/**
 * A cache that goes by likeness, as semantic caches do: a text's embedding is near enough, so its answer is given. And the
 * attack on it (CacheAttack): words are added to a text until its embedding is that of another one.
 */

const WIDTH = 64;

/** Hashed counts of three letters in a row, of length 1. */
export function embed(text: string): Float64Array {
  const counts = new Float64Array(WIDTH), plain = text.toLowerCase();
  for (let i = 0; i + 3 <= plain.length; i++) {
    let hash = 2166136261;
    for (let j = i; j < i + 3; j++) hash = Math.imul(hash ^ plain.charCodeAt(j), 16777619);
    counts[(hash >>> 8) % WIDTH]++;
  }
  const length = Math.hypot(...counts);
  return counts.map((count) => count / length);
}

export function likeness(a: string, b: string): number {
  const [x, y] = [embed(a), embed(b)];
  return x.reduce((sum, value, i) => sum + value * y[i], 0);
}

export class LikenessCache {
  readonly #threshold: number;
  readonly #entries: { readonly text: string; readonly answer: readonly number[] }[] = [];

  constructor(threshold: number) {
    this.#threshold = threshold;
  }

  put(text: string, answer: readonly number[]): void {
    this.#entries.push({ text, answer });
  }

  /** The answer of the text that is most alike, if it is alike enough. */
  get(text: string): readonly number[] | undefined {
    const [best] = this.#entries.map((entry) => ({ ...entry, like: likeness(entry.text, text) }))
      .sort((a, b) => b.like - a.like);
    return best?.like >= this.#threshold ? best.answer : undefined;
  }
}

/** `attack` with words of `target` behind it, each time the best one, until the two are this much alike. */
export function collide(attack: string, target: string, wanted: number): string {
  const words = target.split(" ").filter((word) => word !== "");
  let text = attack;
  for (let round = 0; likeness(text, target) < wanted && round < 400; round++) {
    const [best] = words.map((word) => `${text}${word} `)
      .map((each) => ({ each, like: likeness(each, target) })).sort((a, b) => b.like - a.like);
    text = best.each;
  }
  return text;
}
