/** How text without any control token becomes ids. One implementation for each kind of vocabulary. */
export interface PlainText {
  /**
   * Ids of a text, in time linear in its length. `continued`: the text goes on from other text of the sequence, so
   * nothing that belongs to a beginning is put in front.
   */
  encode(text: string, options: { readonly continued: boolean }): readonly number[];
  /** Characters that the vocabulary has nothing for; they are encoded as U+FFFD. */
  countUnencodable(text: string): number;
  /** The bytes of an ordinary token; undefined for one that is written as it stands. */
  bytesOf(id: number): Uint8Array | undefined;
}
