/** A real Redis server for tests: Debian's `redis-server`, installed when it is missing and this is root. */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { runChild } from "../../tools/child.ts";

export interface TestRedis extends AsyncDisposable {
  readonly port: number;
  /** Of the server's process. */
  readonly pid: number;
  readonly url: string;
}

let found: Promise<string | undefined> | undefined;

/** The server's program, or nothing where it isn't and can't be installed. */
export function findRedis(): Promise<string | undefined> {
  found ??= find();
  return found;
}

async function find(): Promise<string | undefined> {
  const there = await installed();
  if (there || process.getuid?.() !== 0) return there;
  const env = { DEBIAN_FRONTEND: "noninteractive", RUNLEVEL: "1" };
  await runChild("apt-get", ["update", "-qq"], { timeout: 120, env });
  await runChild("apt-get", ["install", "-y", "-qq", "--no-install-recommends", "redis-server"], { timeout: 240, env });
  return await installed();
}

async function installed(): Promise<string | undefined> {
  for (const program of ["redis-server", "valkey-server"]) {
    if ((await runChild(program, ["--version"], { timeout: 20 })).code === 0) return program;
  }
  return undefined;
}

/** Starts a server of its own on a free port of the loopback address; nothing of it outlives `await using`. */
export async function startRedis(program: string, parameters: readonly string[] = []): Promise<TestRedis> {
  const folder = await mkdtemp(join(tmpdir(), "palisade-redis-"));
  const port = await freePort();
  const fixed = ["--port", `${port}`, "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"];
  const child = spawn(program, [...fixed, ...parameters], { stdio: "ignore" });
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  for (let i = 0; i < 100 && !(await answers(port)); i++) await delay(50);
  return {
    port,
    pid: child.pid!,
    url: `redis://127.0.0.1:${port}/0`,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** A port nobody listens on now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.once("connect", () => end(true));
    socket.once("error", () => end(false));
  });
}
