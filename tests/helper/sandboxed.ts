/** What tests run in `runSandboxed`. */
export default function sandboxed(message: { job: string; value?: unknown }): unknown {
  if (message.job === "throw") throw new Error("thrown on purpose");
  if (message.job === "loop") { while (true); }
  const hoard: number[][] = [];
  while (message.job === "hoard") hoard.push(new Array(1000).fill(hoard.length));
  return { echoed: message.value };
}
