/** What must not get into the repository: download hosts in lock files, loose versions, paths of one machine. */
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { ROOT } from "./repository.ts";

type NamedCheck = [string, () => string[]];

const LOCK_FILES =
  /^(deno\.lock|package-lock\.json|npm-shrinkwrap\.json|bun\.lock|yarn\.lock|pnpm-lock\.yaml|Cargo\.lock)$/;

/** Cargo.lock names its index by a fixed identifier that is no download host. */
const CARGO_INDEX = "registry+https://github.com/rust-lang/crates.io-index";

/** Folders of the machine a file was written on, at the start of a path. Ada lives in examples and tests. */
const MACHINE_PATH =
  /(?<![\w.~/\-$}])\/(?:home(?!\/ada\b)|root|tmp|work|Users|workspace|private\/tmp)\/[\w.@-]|file:\/\/\/(?:home|root|tmp|work|Users)\//;

/** Declared by the libs in tsconfig.json, or by Deno, and absent in Node 20. */
const NOT_IN_NODE_20 = /\b(Async)?DisposableStack\b|\bimport\.meta\.main\b|\bnavigator\.hardwareConcurrency\b/;

const BINARY = /\.(gguf|wasm|bin|png|jpe?g|gif|ico|woff2?|zip|gz|tgz|npz|npy|onnx|safetensors|parquet)$/;

const read = (file: string) => readFileSync(join(ROOT, file), "utf8");

/** Lines of the lock files that hold an address. */
export function lockProblems(file: string, text: string): string[] {
  return text.split("\n").flatMap((line, index) => {
    const found = line.replace(CARGO_INDEX, "").match(/\b(?:https?|git\+ssh|git):\/\/[^"\s]+/);
    return found ? [`${file}:${index + 1}: ${found[0]}`] : [];
  });
}

/** Dependencies of a package.json whose version is not exactly one. */
export function pinProblems(file: string, text: string): string[] {
  const manifest = JSON.parse(text) as Record<string, Record<string, string> | undefined>;
  const sections = ["dependencies", "devDependencies", "optionalDependencies", "peerDependencies"];
  return sections.flatMap((section) =>
    Object.entries(manifest[section] ?? {})
      .filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))
      .map(([name, version]) => `${file}: ${name} is "${version}", not one version`)
  );
}

/** Lines of a text that name a folder of somebody's machine. */
export function machinePathProblems(file: string, text: string): string[] {
  return text.split("\n").flatMap((line, index) => {
    const found = line.match(MACHINE_PATH);
    return found ? [`${file}:${index + 1}: ${line.slice(found.index!, found.index! + 60).trim()}`] : [];
  });
}

/** Lines that use what the standard library's types promise and Node 20 lacks. */
export function node20Problems(file: string, text: string): string[] {
  return text.split("\n").flatMap((line, index) => {
    const found = /^\s*(\*|\/[/*])/.test(line) ? null : line.match(NOT_IN_NODE_20);
    return found ? [`${file}:${index + 1}: ${found[0]}`] : [];
  });
}

/** The checks of this file over the repository's `files`. */
export function hygieneProblems(files: readonly string[]): NamedCheck[] {
  const locks = files.filter((file) => LOCK_FILES.test(basename(file)));
  const manifests = files.filter((file) => basename(file) === "package.json");
  // This file and its test must be able to say what they look for.
  const texts = files.filter((file) => !BINARY.test(file) && !/(^|[/_])hygiene(_test)?\.ts$/.test(file));
  const product = files.filter((file) => /^(mod\.ts|(core|wasm|gpu|model|cli|evaluate|web)\/.*\.ts)$/.test(file));
  return [
    ["the product uses nothing Node 20 lacks", () => product.flatMap((file) => node20Problems(file, read(file)))],
    ["lock files name no download host", () => locks.flatMap((file) => lockProblems(file, read(file)))],
    ["npm versions are exact", () => manifests.flatMap((file) => pinProblems(file, read(file)))],
    ["no paths of one machine", () => texts.flatMap((file) => machinePathProblems(file, read(file)))],
  ];
}
