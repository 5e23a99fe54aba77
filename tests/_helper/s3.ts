/** A real server that speaks S3, for tests: PyPI's `moto`, installed into a folder of its own when it is missing. */
import { spawn } from "node:child_process";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { runChild } from "../../tools/child.ts";
import { freePort } from "./redis.ts";

export interface TestS3 extends AsyncDisposable {
  readonly endpoint: string;
  /** Of the server's process. */
  readonly pid: number;
  /** Asks the server for something unsigned: it takes it. */
  request(method: "PUT" | "GET" | "DELETE", path: string, body?: string): Promise<string>;
  /** Ends it as a failure would. */
  kill(): Promise<void>;
}

/** Where `tools/install_test_tools.sh` puts it as well. */
const ENVIRONMENT = join(homedir(), ".cache", "palisade-test-tools");
const PACKAGES = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

let found: Promise<string | undefined> | undefined;

/** A Python that has the server, or nothing where it isn't and can't be installed. */
export function findMoto(): Promise<string | undefined> {
  found ??= find();
  return found;
}

async function find(): Promise<string | undefined> {
  const own = join(ENVIRONMENT, "bin", "python");
  for (const python of ["python3", own]) if (await hasMoto(python)) return python;
  if ((await runChild("python3", ["-m", "venv", ENVIRONMENT], { timeout: 120 })).code !== 0) return undefined;
  await runChild(own, ["-m", "pip", "install", "-q", ...PACKAGES], { timeout: 300 });
  return await hasMoto(own) ? own : undefined;
}

async function hasMoto(python: string): Promise<boolean> {
  const imports = "import moto.server, moto.s3, flask, flask_cors";
  return (await runChild(python, ["-c", imports], { timeout: 60 })).code === 0;
}

/** Starts a server of its own on a free port of the loopback address, with the bucket `test-bucket`. */
export async function startS3(python: string): Promise<TestS3> {
  const port = await freePort(), endpoint = `http://127.0.0.1:${port}`;
  const child = spawn(python, ["-m", "moto.server", "-H", "127.0.0.1", "-p", `${port}`], { stdio: "ignore" });
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  const request = async (method: string, path: string, body?: string) =>
    await (await fetch(`${endpoint}${path}`, { method, body })).text();
  const kill = async () => {
    child.kill("SIGKILL");
    await ended;
  };
  for (let i = 0; i < 600 && child.exitCode === null; i++) {
    if (await request("PUT", "/test-bucket").then(() => true, () => false)) break;
    await delay(50);
  }
  return { endpoint, pid: child.pid!, request, kill, [Symbol.asyncDispose]: kill };
}

/** What the SDK finds credentials in; any will do. */
export function setCredentials(): void {
  process.env["AWS_ACCESS_KEY_ID"] ??= "test";
  process.env["AWS_SECRET_ACCESS_KEY"] ??= "test";
}
