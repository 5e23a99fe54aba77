/**
 * The URL of a module beside the calling one: `siblingModule("./render", import.meta.url)`. It has the extension of
 * the caller, `.ts` in the sources and `.js` in the built package, which the compiler does not rewrite inside URLs.
 */
export function siblingModule(path: string, callerUrl: string): URL {
  const pathname = new URL(callerUrl).pathname;
  return new URL(`${path}${pathname.slice(pathname.lastIndexOf("."))}`, callerUrl);
}
