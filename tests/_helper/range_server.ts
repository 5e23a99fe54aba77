/** A server of files by HTTP ranges on this machine, and what may be wrong with one. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface Served {
  readonly bytes: Uint8Array;
  /** `text/javascript` and the like. */
  readonly type?: string;
  readonly etag?: string;
}

export interface RangeServer extends AsyncDisposable {
  readonly url: string;
  /** Method, path and range of each request so far. */
  readonly requests: readonly string[];
}

/** Serves what `find` gives for a path; `spoil` may answer first, and then returns true. */
export async function serveRanges(
  find: (path: string) => Served | undefined,
  spoil: (request: IncomingMessage, response: ServerResponse) => boolean = () => false,
): Promise<RangeServer> {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    const path = new URL(request.url!, "http://localhost").pathname;
    requests.push(`${request.method} ${path} ${request.headers.range ?? ""}`.trim());
    const file = find(path);
    if (spoil(request, response)) return;
    if (!file) return void response.writeHead(404).end();
    send(file, request.headers.range, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function send({ bytes, type, etag }: Served, range: string | undefined, response: ServerResponse): void {
  const headers = { "content-type": type ?? "application/octet-stream", ...(etag && { etag }) };
  const asked = /^bytes=(\d+)-(\d+)$/.exec(range ?? "");
  if (!asked) return void response.writeHead(200, headers).end(bytes);
  const first = Number(asked[1]), last = Math.min(Number(asked[2]), bytes.length - 1);
  if (first >= bytes.length) {
    return void response.writeHead(416, { ...headers, "content-range": `bytes */${bytes.length}` }).end();
  }
  const part = bytes.subarray(first, last + 1);
  response.writeHead(206, {
    ...headers,
    "content-range": `bytes ${first}-${last}/${bytes.length}`,
    "content-length": part.length,
  });
  response.end(part);
}
