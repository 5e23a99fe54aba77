import assert from "node:assert/strict";
import { inTurns, type Turn } from "../../tools/turns.ts";

/** Jobs that end when told, and what they have printed. */
function staged(count: number, lanes: number) {
  const stages = Array.from({ length: count }, () => Promise.withResolvers<void>());
  const turns: Turn[] = [];
  const printed: string[] = [];
  const jobs = stages.map(({ promise }, i) => async (turn: Turn) => {
    turns[i] = turn;
    turn.write(`${i} begins. `);
    await promise;
    turn.write(`${i} ends. `);
    return i;
  });
  const all = inTurns(jobs, lanes, (text) => printed.push(text));
  const end = async (i: number) => {
    stages[i].resolve();
    await new Promise((resolve) => setTimeout(resolve));
  };
  return { stages, turns, printed, all, end };
}

Deno.test("inTurns() prints the first job as it goes, and the others in their order", async () => {
  const { turns, printed, all, end } = staged(3, 3);
  assert.deepEqual(printed, ["0 begins. "]);
  turns[0].write("0 goes on. ");
  assert.deepEqual(printed, ["0 begins. ", "0 goes on. "]);
  await end(2);
  assert.equal(printed.length, 2);
  await end(0);
  assert.deepEqual(printed.slice(2), ["0 ends. ", "1 begins. "]);
  turns[1].write("1 goes on. ");
  await end(1);
  assert.deepEqual(printed.slice(4), ["1 goes on. ", "1 ends. ", "2 begins. 2 ends. "]);
  assert.deepEqual(await all, [0, 1, 2]);
});

Deno.test("inTurns() has no more jobs at once than lanes", async () => {
  const { turns, all, end } = staged(3, 2);
  assert.equal(turns.length, 2);
  await end(1);
  assert.equal(turns.length, 3);
  await Promise.all([end(0), end(2)]);
  assert.deepEqual(await all, [0, 1, 2]);
});

Deno.test("inTurns() throws what a job throws, once nothing runs, and starts no more", async () => {
  const { stages, turns, printed, all, end } = staged(3, 2);
  const refused = assert.rejects(all, /lamp out/);
  stages[0].reject(new Error("lamp out"));
  await end(1);
  await refused;
  assert.equal(turns.length, 2);
  assert.deepEqual(printed, ["0 begins. ", "1 begins. 1 ends. "]);
});
