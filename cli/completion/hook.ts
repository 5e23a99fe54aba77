/** How scripts of completion ask this program: `palisade __complete models`. Not for people, and not in any help. */

/** The first word of such a line. */
export const COMPLETE = "__complete";
