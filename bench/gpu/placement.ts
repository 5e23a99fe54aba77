/** Where onnxruntime runs the nodes of a graph, by what it logs of a session that starts with severity 0. */

/** What a provider runs: how many nodes, and which of them are products of matrices or attention (`operator (name)`). */
export interface Placed {
  readonly nodes: number;
  readonly products: readonly string[];
}

const WEBGPU = "WebGpuExecutionProvider";
/** The nodes that a model's time goes to. Those of shapes, masks and positions are put on the CPU on purpose. */
const PRODUCT = /^\w*(MatMul|Gemm|Attention|MoE|Conv)\w* /;

/** By provider; empty where the log says nothing of it. */
export function readPlacement(log: readonly string[]): Map<string, Placed> {
  const found = new Map<string, { readonly nodes: number; readonly products: string[] }>();
  let products: string[] = [];
  for (const line of log) {
    if (!line.includes("VerifyEachNodeIsAssignedToAnEp]")) continue;
    const text = line.slice(line.indexOf("]", line.indexOf("VerifyEachNode")) + 1).trim();
    const provider = /odes?(?:\(s\))? placed on \[(\w+)\]\. Number of nodes: (\d+)/.exec(text);
    if (provider) found.set(provider[1], { nodes: Number(provider[2]), products: products = [] });
    else if (PRODUCT.test(text)) products.push(text);
  }
  return found;
}

/** How much of a graph runs on WebGPU, in words. @throws Error where a product or attention doesn't, or nothing does. */
export function requireWebGpu(placement: ReadonlyMap<string, Placed>): string {
  const device = placement.get(WEBGPU), others = [...placement].filter(([provider]) => provider !== WEBGPU);
  if (device === undefined) {
    throw new Error(
      `no node of it runs on WebGPU (${others.map(([provider]) => provider).join(", ") || "none is told"})`,
    );
  }
  for (const [provider, { products }] of others) {
    if (products.length > 0) throw new Error(`${products[0]} runs on ${provider}, not on WebGPU`);
  }
  const rest = others.reduce((sum, [, { nodes }]) => sum + nodes, 0);
  return `${device.nodes} of ${device.nodes + rest} nodes on WebGPU, among them all products`;
}

/** What `work` has said on the console, which shows none of it. */
export async function captureLog(work: () => Promise<unknown>): Promise<string[]> {
  const lines: string[] = [], names = ["log", "info", "warn", "error", "debug"] as const;
  const before = names.map((name) => console[name]);
  for (const name of names) console[name] = (...words: unknown[]) => void lines.push(words.join(" "));
  try {
    await work();
  } finally {
    names.forEach((name, i) => console[name] = before[i]);
  }
  return lines;
}
