/**
 * The URL of a module beside the calling one: `siblingModule("./render", import.meta.url)`. It has the extension of
 * the caller, `.ts` in the sources and `.js` in the built package, which the compiler does not rewrite inside URLs.
 * In a single binary the caller's URL is the binary's own, and the module lies beside it as `.js`.
 */
export function siblingModule(path: string, callerUrl: string): URL {
  const pathname = new URL(callerUrl).pathname;
  const extension = /\.[cm]?[jt]s$/.exec(pathname)?.[0] ?? ".js";
  return new URL(`${path}${extension}`, callerUrl);
}
