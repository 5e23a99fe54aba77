/** What each thread of a pool runs: it sleeps until commands come, carries them out in order, and leaves the answers. */
import type { ThreadPort } from "../../runtime/interface.ts";
import { PARCELS, type PoolData, WORD } from "./pool.ts";
import { SharedBoard } from "./barrier.ts";
import { serve } from "./command.ts";
import { ROWS, RowsService } from "./rows_service.ts";
import { DENSE, DenseService } from "../dense/service.ts";
import { createWasmBackend } from "../backend.ts";
import { Kernels } from "../module.ts";
import { failure, type Parcel, parcelBytes, ParcelMemory } from "./message.ts";

/** Runs until it is told to stop. */
export default async function poolWorker(data: PoolData, port: ThreadPort): Promise<void> {
  let rows: RowsService, dense: DenseService;
  try {
    rows = new RowsService(await createWasmBackend(data.kernels));
    dense = new DenseService(await Kernels.start(data.kernels), new SharedBoard(data.board, data.size));
  } catch (error) {
    return port.post(error instanceof Error ? error.message : String(error));
  }
  const [onRows, onDense] = [serve(ROWS, rows), serve(DENSE, dense)];
  const memory = new ParcelMemory(data.mailbox);
  const control = new Int32Array(data.mailbox, 0, PARCELS / 4);
  port.post("ready");
  for (let seen = 0;;) {
    while (Atomics.load(control, WORD.request) === seen && !Atomics.load(control, WORD.stop)) {
      Atomics.wait(control, WORD.request, seen);
    }
    if (Atomics.load(control, WORD.stop)) return;
    seen = Atomics.load(control, WORD.request);
    memory.refresh();
    const commands = read(memory, control[WORD.count]);
    const answers: Parcel[] = [];
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
    Atomics.store(control, WORD.reply, seen);
    Atomics.notify(control, WORD.reply);
  }
}

function read(memory: ParcelMemory, count: number): Parcel[] {
  const parcels: Parcel[] = [];
  for (let at = PARCELS; parcels.length < count;) {
    const { parcel, end } = memory.read(at);
    parcels.push(parcel);
    at = end;
  }
  return parcels;
}

/** Writes the answers over the commands, which are done with. */
function leave(memory: ParcelMemory, answers: Parcel[]): void {
  const most = memory.buffer.maxByteLength;
  let end = PARCELS;
  answers.forEach((answer, i) => {
    if (end + parcelBytes(answer) > most - 2 ** 20) {
      answers[i] = failure(new RangeError(`An answer beyond ${most} bytes`));
    }
    end += parcelBytes(answers[i]);
  });
  memory.reserve(end);
  let at = PARCELS;
  for (const answer of answers) at = memory.write(at, answer);
}
