/**
 * The word of `words` nearest to `word` by edit distance (insert, delete, replace; case ignored), for "did you mean".
 * `undefined` when none is near: more than a third of the longer word would have to change. The first of equals wins.
 */
export function nearestName(word: string, words: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Infinity;
  for (const candidate of words) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    const allowed = Math.max(1, Math.floor(Math.max(word.length, candidate.length) / 3));
    if (distance <= allowed && distance < bestDistance) {
      [best, bestDistance] = [candidate, distance];
    }
  }
  return best;
}

/** What to do about an unknown `word`: the name that was meant, or else what is there. */
export function adviceFor(word: string, words: Iterable<string>, otherwise: string): string {
  const near = nearestName(word, words);
  return near === undefined ? otherwise : `did you mean ${near}?`;
}

/** Longest word compared, in UTF-16 units; a longer one is no misspelt name, and the cost is quadratic. */
const MAX_COMPARED = 200;
/** Levenshtein distance of two words, row by row. Time and place: `a.length · b.length` and `b.length`. */
export function editDistance(a: string, b: string): number {
  if (a.length > MAX_COMPARED || b.length > MAX_COMPARED) {
    return Math.max(a.length, b.length);
  }
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, row[j] + 1, next[j - 1] + 1));
    }
    row = next;
  }
  return row[b.length];
}
