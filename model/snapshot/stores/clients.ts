/**
 * The packages that speak to servers, loaded when a store is opened. Who doesn't install them must be able to check
 * types against this library all the same: their types are named here and in function bodies alone, never in what the
 * package exports.
 */
import { missingPackage } from "./failures.ts";

export type Sdk = typeof import("@aws-sdk/client-s3");

/** Loads the SDK; `load` stands in for the import in tests. @throws PalisadeError resources `store.package`. */
export async function loadS3Client(load: () => Promise<Sdk> = () => import("@aws-sdk/client-s3")): Promise<Sdk> {
  try {
    return await load();
  } catch (cause) {
    throw missingPackage("in S3", "@aws-sdk/client-s3@3.1175.0", cause);
  }
}

/** Loads ioredis; `load` stands in for the import in tests. @throws PalisadeError resources `store.package`. */
export async function loadValkeyClient(load = () => import("ioredis")): Promise<typeof import("ioredis").Redis> {
  try {
    return (await load()).Redis;
  } catch (cause) {
    throw missingPackage("on a Valkey server", "ioredis@6.0.0", cause);
  }
}
