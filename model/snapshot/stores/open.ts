/** Opens the store that a text names: a folder's path, or the address of a server. */
import type { Runtime } from "../../../runtime/interface.ts";
import { folderStore } from "../folder_store.ts";
import type { SnapshotStore } from "../store.ts";
import { hasOpfs, opfsStore } from "./opfs.ts";
import { indexedDbStore } from "./indexed_db.ts";
import { badPlace } from "./failures.ts";
import { s3Store } from "./s3.ts";
import { valkeyStore } from "./valkey.ts";

/** Whether a text names a server, not a folder. */
export function isStoreUrl(place: string): boolean {
  // Drives of Windows have one letter.
  return /^[a-z][a-z0-9+.-]+:\/\//i.test(place);
}

/**
 * `redis://…` and `rediss://…` (Valkey, Redis), `s3://BUCKET/PREFIX` (its server from AWS_ENDPOINT_URL_S3 or
 * AWS_ENDPOINT_URL, Amazon's by default), or a folder. PalisadeErrors: input `store.url`, and as those stores'.
 */
export async function openStore(place: string, runtime: Runtime): Promise<SnapshotStore> {
  if (!isStoreUrl(place)) return await openFolder(place, runtime);
  if (/^rediss?:/.test(place)) return await valkeyStore(place);
  if (place.startsWith("s3:")) {
    const endpoint = runtime.environment("AWS_ENDPOINT_URL_S3") ?? runtime.environment("AWS_ENDPOINT_URL");
    return await s3Store(place, { endpoint });
  }
  const scheme = place.slice(0, place.indexOf(":"));
  throw badPlace(`There is no store of snapshots for ${scheme}: want redis://, rediss://, s3:// or a folder`);
}

/** A folder, which needn't be there yet. */
async function openFolder(place: string, runtime: Runtime): Promise<SnapshotStore> {
  if (place === "") {
    throw badPlace("Snapshots can't be kept in a place without a name: want a folder or a store's address");
  }
  const kind = (await runtime.host?.info(place))?.kind ?? "folder";
  if (kind !== "folder") throw badPlace(`Snapshots can't be kept in ${place}: it is no folder`);
  return folderStore(runtime, place);
}

/** What a page has: its own files, or IndexedDB where there are none that can be written. PalisadeErrors as those. */
export async function pageStore(name?: string): Promise<SnapshotStore> {
  return hasOpfs() ? await opfsStore(name) : await indexedDbStore(name);
}
