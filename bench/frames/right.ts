/** Whether an answer says what was accepted. */

/** True when one of the accepted wordings stands in the answer, word by word. */
export function isRight(answer: string, accepted: readonly string[]): boolean {
  const said = ` ${normalised(answer)} `;
  return accepted.some((each) => said.includes(` ${normalised(each)} `));
}

/** Lower case, letters, digits and what joins digits; single blanks; no comma inside a number. */
function normalised(text: string): string {
  return text.normalize("NFKC").toLowerCase()
    .replace(/(?<=\d),(?=\d{3})/g, "")
    .replace(/[^\p{L}\p{N}.%]+/gu, " ")
    .replace(/(?<!\d)\.|\.(?!\d)/g, " ")
    .replace(/\s+/g, " ")
    .trim();
}
