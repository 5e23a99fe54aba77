/** What is odd in a model file and changes no answer. */
export interface Notice {
  /** The field: a metadata key, or a path as in errors. */
  readonly where: string;
  /** What is there, and what was done about it. */
  readonly text: string;
}
