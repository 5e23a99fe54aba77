/** What each thread of a pool runs: it waits until commands come, carries them out in order, and leaves the answers. */
import type { ThreadPort } from "../../runtime/interface.ts";
import { MESSAGES, type PoolData, WORD } from "./pool.ts";
import { Barrier } from "./barrier.ts";
import { serve } from "./command.ts";
import { ROWS, RowsService } from "./rows_service.ts";
import { DENSE, DenseService } from "../dense/service.ts";
import { createWasmBackend } from "../backend.ts";
import { Kernels } from "../module.ts";
import { Waiter } from "./wait.ts";
import { failure, type Message, messageBytes, MessageMemory } from "./message.ts";

/** Runs until it is told to stop. */
export default async function poolWorker(data: PoolData, port: ThreadPort): Promise<void> {
  let rows: RowsService, dense: DenseService;
  try {
    rows = new RowsService(await createWasmBackend(data.kernels));
    dense = new DenseService(await Kernels.start(data.kernels), new Barrier(data.barrier, data.size));
  } catch (error) {
    return port.post(error instanceof Error ? error.message : String(error));
  }
  const [onRows, onDense] = [serve(ROWS, rows), serve(DENSE, dense)];
  const memory = new MessageMemory(data.mailbox);
  const control = new Int32Array(data.mailbox, 0, MESSAGES / 4);
  const requests = new Waiter(control, WORD.request);
  port.post("ready");
  for (let seen = 0;;) {
    while (!Atomics.load(control, WORD.stop) && !requests.changed(seen)) { /* woken for nothing */ }
    if (Atomics.load(control, WORD.stop)) return;
    seen = Atomics.load(control, WORD.request);
    memory.refresh();
    const commands = read(memory, control[WORD.count]);
    const answers: Message[] = [];
    for (const command of commands) {
      try {
        answers.push(
          await (onRows(command) ?? onDense(command)) ?? failure(new RangeError(`No command ${command.operation}`)),
        );
      } catch (error) {
        answers.push(failure(error));
      }
    }
    leave(memory, answers);
    for (const { arrays } of answers) {
      for (const array of arrays) if (array instanceof Float32Array) rows.backend.tensors.free(array);
    }
    Atomics.store(control, WORD.reply, seen);
    Atomics.notify(control, WORD.reply);
  }
}

function read(memory: MessageMemory, count: number): Message[] {
  const messages: Message[] = [];
  for (let at = MESSAGES; messages.length < count;) {
    const { message, end } = memory.read(at);
    messages.push(message);
    at = end;
  }
  return messages;
}

/** Writes the answers over the commands, which are done with. */
function leave(memory: MessageMemory, answers: Message[]): void {
  const most = memory.buffer.maxByteLength;
  let end = MESSAGES;
  answers.forEach((answer, i) => {
    if (end + messageBytes(answer) > most - 2 ** 20) {
      answers[i] = failure(new RangeError(`An answer beyond ${most} bytes`));
    }
    end += messageBytes(answers[i]);
  });
  memory.reserve(end);
  let at = MESSAGES;
  for (const answer of answers) at = memory.write(at, answer);
}
