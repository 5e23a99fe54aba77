/** A real browser for pages, driven by playwright-core; the browser itself comes from the system. */
import { existsSync } from "node:fs";
import process from "node:process";
import { type Browser, chromium, type Page } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** Path of the browser: the variable PALISADE_CHROMIUM, or the usual places. */
export function findChromium(): string | undefined {
  return [process.env["PALISADE_CHROMIUM"], ...PLACES].find((path) => path && existsSync(path));
}

export const NO_CHROMIUM = "no Chromium on this machine: tools/install_test_tools.sh installs it";

export async function launchChromium(flags: readonly string[] = []): Promise<Browser> {
  return await chromium.launch({ executablePath: findChromium(), args: ["--no-sandbox", ...flags] });
}

/** Notes everything a page must not do: throw, log an error, or ask for anything that is not a local file. */
export function watchPage(page: Page): string[] {
  const complaints: string[] = [];
  page.on("pageerror", (error) => complaints.push(`error: ${error}`));
  page.on("console", (message) => message.type() === "error" && complaints.push(`console: ${message.text()}`));
  page.on("request", (request) => {
    if (!/^(file|data|blob):/.test(request.url())) complaints.push(`request: ${request.url()}`);
  });
  return complaints;
}
