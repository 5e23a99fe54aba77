/** Frequency chunks that nobody calibrated. */
import type { ModelConfig } from "../../model/config.ts";
import type { Chunks } from "../../model/foresight/file.ts";

/** Agreements that fall from chunk to chunk, and differ from head to head. */
export function anyChunks({ name, architecture, layers, kvHeads, headDim }: ModelConfig): Chunks {
  const count = Math.ceil(headDim / 2), agreement = new Float32Array(layers * kvHeads * count);
  agreement.forEach((_, i) => agreement[i] = ((i * 7) % 11) / 11);
  return {
    name: "made up",
    info: {
      ...{ format: 1, top: 8, model: { name, architecture, sha256: "0".repeat(64) } },
      calibration: { texts: ["none"], tokens: 0, seed: 1 },
    },
    agreement,
    shape: [layers, kvHeads, count],
  };
}
