/** What tests run in `runSandboxed`. */
export default function sandboxed(message: { job: string; value?: unknown }): unknown {
  if (message.job === "throw") throw new Error("thrown on purpose");
  if (message.job === "loop") { while (true); }
  if (message.job === "count") { while (true) Atomics.add(message.value as Int32Array, 0, 1); }
  const hoard: number[][] = [];
  while (message.job === "hoard") hoard.push(new Array(1000).fill(hoard.length));
  return { echoed: message.value };
}
