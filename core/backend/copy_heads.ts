/** All of a layer's rows, head by head. */
import type { CopiedRows, LayerRows } from "./interface.ts";

/** What `copyRows` gives of each head, in order; one head at a time, so that a device holds one copy more, not all. */
export async function copyHeads(rows: Pick<LayerRows, "shape" | "copyRows">): Promise<CopiedRows[]> {
  const heads: CopiedRows[] = [];
  while (heads.length < rows.shape.kvHeads) heads.push(await rows.copyRows(heads.length));
  return heads;
}
