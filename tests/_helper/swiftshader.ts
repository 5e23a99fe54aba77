/** SwiftShader, an emulator of Vulkan that comes with Chromium: for runtimes whose WebGPU takes its adapter from Vulkan. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { ROOT } from "../../tools/repository.ts";
import { findChromium } from "./chromium.ts";

/** Where Debian's Chromium, and the browsers that others ship, keep SwiftShader's description. */
export const SWIFTSHADER: string | undefined = [
  "/usr/lib/chromium",
  ...[findChromium()].flatMap((path) => path ? [dirname(path)] : []),
].map((folder) => join(folder, "vk_swiftshader_icd.json")).find(existsSync);

export const NO_SWIFTSHADER = "no SwiftShader on this machine: it comes with Chromium (tools/install_test_tools.sh)";

/** The environment of a process that is to find SwiftShader and nothing else. */
export function swiftShaderOnly(): Record<string, string | undefined> {
  return { VK_ICD_FILENAMES: SWIFTSHADER, XDG_RUNTIME_DIR: process.env["XDG_RUNTIME_DIR"] ?? ROOT };
}

/** Why the npm package `webgpu` can't be had here; nothing where it can. */
export function noDawn(): { readonly reason: string; readonly cause: "file" | "device" } | undefined {
  const folder = join(ROOT, "node_modules/webgpu/dist"), { platform, arch } = process;
  if (!existsSync(folder)) return { reason: "no node_modules/webgpu: deno install brings it", cause: "file" };
  const binary = platform === "darwin" ? "darwin-universal" : `${platform}-${arch}`;
  if (existsSync(join(folder, binary))) return undefined;
  return { reason: `the npm package webgpu has no binary for ${platform} on ${arch}`, cause: "device" };
}
