/** Texts that end an answer: found however they are cut, and no part of it. */
import assert from "node:assert/strict";
import { randomSource } from "../../core/measure/random.ts";
import { PalisadeError } from "../../core/errors.ts";
import { loadModel } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { stopsOf, StopWatch } from "../../model/decode/stops.ts";
import { FRAMES, resolveFrame } from "../../model/text/frames.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { TINY_MODEL } from "../_helper/workbench.ts";

function watched(pieces: readonly string[], stops: readonly string[]): { given: string[]; stopped: boolean } {
  const watch = new StopWatch(stops), given = pieces.map((piece) => watch.push(piece));
  return { given: [...given, watch.end()], stopped: watch.stopped };
}

Deno.test("a stop ends the reply however the pieces are cut, and so does the first of several", () => {
  const said = "A wall.\n\nQuestion: Why?\nAnswer:", stops = ["Why", "\nQuestion:"];
  const random = randomSource(3);
  for (let round = 0; round < 200; round++) {
    const pieces: string[] = [];
    for (let at = 0; at < said.length;) {
      const end = at + 1 + Math.floor(random() * 6);
      pieces.push(said.slice(at, end));
      at = end;
    }
    const { given, stopped } = watched(pieces, stops);
    assert.deepEqual([given.join(""), stopped], ["A wall.", true], JSON.stringify(pieces));
  }
});

Deno.test("what only begins like a stop is given, once that is certain, and white space with it", () => {
  const stops = ["\nQuestion:"];
  assert.deepEqual(watched(["one\n", "Quest", "s follow"], stops), {
    given: ["one", "", "\nQuests follow", ""],
    stopped: false,
  });
  assert.deepEqual(watched(["one ", "\nQuestion"], stops), { given: ["one", "", " \nQuestion"], stopped: false });
  assert.deepEqual(watched(["one \n", "\n"], []), { given: ["one \n", "\n", ""], stopped: false });
});

Deno.test("without a chat template the frame's next question ends an answer, where the frame has words for one", () => {
  const stops = (frame: string, kind: "plain" | "chat" | "none" = "plain") =>
    stopsOf({ kind, words: resolveFrame(frame) });
  assert.deepEqual(Object.keys(FRAMES).map((name) => [name, ...stops(name)]), [
    ["line"],
    ["blank"],
    ["question", "\nQuestion:"],
    ["answer", "\nQuestion:"],
    ["rule"],
    ["before"],
    ["before-question", "\nQuestion:"],
    ["before-answer", "\nQuestion:"],
    ["after", "\nAnswer this question about the text above:"],
    ["both", "\nAnswer this question about the text above:"],
    ["none"],
  ]);
  assert.deepEqual([stops("before-answer", "chat"), stops("before-answer", "none")], [[], []]);
  assert.deepEqual(stops("{text} Frage: {question}"), []);
});

Deno.test("ask() ends where the model says a stop, and refuses an empty one", async () => {
  await using model = await loadModel(TINY_MODEL, await currentRuntime());
  using context = await openContext(model, "She counted seventeen stakes. ".repeat(4), { policy: "full" });
  const told = { maxTokens: 24, allowLoops: true }, pieces: string[] = [];
  const { answer, finish } = await context.ask("How many?", { ...told, stop: [] });
  assert.equal(finish, "length");
  const letters = Array.from(answer), stop = letters.slice(8, 10).join("");
  const ended = await context.ask("How many?", { ...told, stop: [stop], onText: (piece) => pieces.push(piece) });
  assert.deepEqual([ended.answer, ended.finish], [answer.slice(0, answer.indexOf(stop)).trimEnd(), "stop"]);
  assert.equal(pieces.join(""), ended.answer);
  const after = await context.ask("How many?", { ...told, stop: [], answerPrefix: "Question:" });
  assert.equal(after.answer.startsWith("Question:"), true);
  await assert.rejects(context.ask("How many?", { ...told, stop: [stop, ""] }), (error: unknown) => {
    return error instanceof PalisadeError && error.kind === "input" && error.code === "stop.empty";
  });
});
