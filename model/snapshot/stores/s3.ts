/**
 * Snapshots in a bucket of S3, or of a server that speaks like it: an object `PREFIX/NAME.palisade` each. Objects are
 * replaced whole; large ones are uploaded in parts, which become an object in one step.
 */
import type { S3Client } from "@aws-sdk/client-s3";
import { PalisadeError } from "../../../core/errors.ts";
import { EXTENSION } from "../folder_store.ts";
import { heeding } from "../signals.ts";
import {
  type ByteRange,
  checkSnapshotName,
  missingSnapshot,
  type SnapshotInfo,
  type SnapshotStore,
  type StoreOptions,
} from "../store.ts";
import { loadS3Client, type Sdk } from "./clients.ts";
import { badPlace, checkRange, pieces, storeFailure } from "./failures.ts";

/** S3 takes parts from 5 MiB on, but for the last, and 10,000 of them. */
const PART_BYTES = 2 ** 23;

/** Where a bucket is, and how it is spoken to. */
export interface S3Options {
  /**
   * The server's address where it is not Amazon's, e.g. `http://127.0.0.1:9000`; buckets are then part of the path.
   * Credentials come as the SDK finds them: from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or its files.
   */
  readonly endpoint?: string;
  /** Default: as the SDK finds it, and `us-east-1` with an `endpoint`. */
  readonly region?: string;
  /** Tries of each request; default 3. */
  readonly attempts?: number;
  /** Bytes of a part, from 5 MiB on; default 8 MiB. */
  readonly partBytes?: number;
  /** Names the server tells at a time when listing; default as many as it likes, 1,000 at Amazon's. */
  readonly pageSize?: number;
}

/** A place in S3. */
interface Bucket {
  readonly bucket: string;
  /** What keys begin with: empty, or ending in `/`. */
  readonly prefix: string;
  readonly shown: string;
}

/**
 * The snapshots under `s3://BUCKET/PREFIX`; it wants the package @aws-sdk/client-s3. PalisadeErrors: input `store.url`;
 * resources `store.package`; of its methods resources `store.unreachable`, `store.refused`, `store.failed`, besides a
 * store's own. Nothing is asked of the server here.
 */
export async function s3Store(url: string, options: S3Options = {}): Promise<SnapshotStore> {
  const bucket = parseS3Url(url), sdk = await loadS3Client(), { endpoint, region, attempts } = options;
  const client = new sdk.S3Client({
    ...(region !== undefined && { region }),
    ...(attempts !== undefined && { maxAttempts: attempts }),
    // Servers like S3 know no host names of buckets, and not all know the newer checksums.
    ...(endpoint !== undefined && {
      endpoint,
      region: region ?? "us-east-1",
      forcePathStyle: true,
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
    }),
  });
  return heeding(new S3Store(sdk, client, bucket, options));
}

/** @throws PalisadeError input `store.url`. */
export function parseS3Url(text: string): Bucket {
  const match = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/(.*))?$/s.exec(text);
  const folders = (match?.[2] ?? "").split("/").filter((part, i, all) => part !== "" || i < all.length - 1);
  if (match && folders.every((part) => /^[A-Za-z0-9!_.*'()-]+$/.test(part) && !/^\.+$/.test(part))) {
    const prefix = folders.map((part) => `${part}/`).join("");
    return { bucket: match[1], prefix, shown: `s3://${match[1]}/${prefix}` };
  }
  const wanted =
    "s3://BUCKET/PREFIX: a bucket's name in small letters, digits, - and ., and a prefix without odd characters";
  // A URL may hold a password before an @.
  const shown = /[@:]/.test(text.slice(5)) ? `${text.slice(0, 5)}…` : JSON.stringify(text.slice(0, 80));
  throw badPlace(`Can't use ${shown} as a store of snapshots: want ${wanted}`);
}

/** What the SDK's errors have. */
interface SdkError extends Error {
  readonly $metadata?: { readonly httpStatusCode?: number };
  readonly $response?: unknown;
}

function translated(place: string, error: SdkError): Error {
  if (error instanceof PalisadeError || error instanceof RangeError) return error;
  const status = error.$metadata?.httpStatusCode;
  const told = Object.assign(
    new Error(error.message ? `${error.name}: ${error.message}` : error.name, { cause: error }),
  );
  if (status === 401 || status === 403 || error.name === "CredentialsProviderError") {
    return storeFailure("refused", place, told);
  }
  if (status === undefined && !/^(InvalidBucketName|TypeError)$/.test(error.name)) {
    return storeFailure("unreachable", place, told);
  }
  return storeFailure("failed", place, told);
}

class S3Store implements SnapshotStore {
  readonly place: string;
  readonly #sdk: Sdk;
  readonly #client: S3Client;
  readonly #bucket: Bucket;
  readonly #partBytes: number;
  readonly #pageSize?: number;

  constructor(sdk: Sdk, client: S3Client, bucket: Bucket, { partBytes = PART_BYTES, pageSize }: S3Options) {
    this.#sdk = sdk;
    this.#client = client;
    this.#bucket = bucket;
    this.#partBytes = partBytes;
    this.#pageSize = pageSize;
    this.place = bucket.shown;
  }

  async get(name: string, range?: ByteRange, { signal }: StoreOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    const object = this.#object(name);
    // There is no range of no bytes in HTTP.
    if (range && !(range.length > 0 && range.offset >= 0)) {
      checkRange(range, (await this.head(name, { signal }) ?? this.#missing(name)).size);
      return new Uint8Array(0);
    }
    return await this.#asked(name, async () => {
      const asked = range && `bytes=${range.offset}-${range.offset + range.length - 1}`;
      const { Body, ContentRange } = await this.#client.send(
        new this.#sdk.GetObjectCommand({ ...object, Range: asked }),
        { abortSignal: signal },
      );
      const bytes = await Body!.transformToByteArray();
      // S3 gives what there is of a range.
      if (range) checkRange(range, Number(/\/(\d+)$/.exec(ContentRange ?? "")?.[1] ?? bytes.length));
      return new Uint8Array(bytes);
    });
  }

  async put(
    name: string,
    content: Uint8Array | AsyncIterable<Uint8Array>,
    { signal }: StoreOptions = {},
  ): Promise<void> {
    const object = this.#object(name), parts = pieces(content, this.#partBytes);
    const first = (await parts.next()).value!;
    if (first.length < this.#partBytes) {
      await this.#asked(name, () => this.#client.send(new this.#sdk.PutObjectCommand({ ...object, Body: first })));
    } else await this.#putParts(name, first, parts, signal);
  }

  async head(name: string, { signal }: StoreOptions = {}): Promise<SnapshotInfo | undefined> {
    const object = this.#object(name);
    try {
      const command = new this.#sdk.HeadObjectCommand(object);
      const { ContentLength, LastModified } = await this.#client.send(command, { abortSignal: signal });
      return { name, size: ContentLength ?? 0, used: LastModified?.getTime() ?? 0 };
    } catch (error) {
      // An answer without a body can't say whether the object or the bucket is missing.
      if ((error as SdkError).$metadata?.httpStatusCode === 404) return undefined;
      throw translated(this.place, error as SdkError);
    }
  }

  async list(prefix = "", { signal }: StoreOptions = {}): Promise<SnapshotInfo[]> {
    const { bucket, prefix: folder } = this.#bucket, found: SnapshotInfo[] = [];
    let token: string | undefined;
    do {
      const asked = {
        Bucket: bucket,
        Prefix: folder + prefix,
        Delimiter: "/",
        ContinuationToken: token,
        MaxKeys: this.#pageSize,
      };
      const command = new this.#sdk.ListObjectsV2Command(asked);
      const page = await this.#asked("", () => this.#client.send(command, { abortSignal: signal }));
      for (const { Key, Size, LastModified } of page.Contents ?? []) {
        const name = nameOf(Key ?? "", folder);
        if (name !== undefined) found.push({ name, size: Size ?? 0, used: LastModified?.getTime() ?? 0 });
      }
      token = page.NextContinuationToken;
    } while (token !== undefined);
    return found.sort((a, b) => a.name < b.name ? -1 : 1);
  }

  async delete(name: string): Promise<boolean> {
    if (!await this.head(name)) return false;
    const command = new this.#sdk.DeleteObjectCommand(this.#object(name));
    await this.#asked(name, () => this.#client.send(command));
    return true;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve(this.#client.destroy());
  }

  async #putParts(
    name: string,
    first: Uint8Array,
    rest: AsyncIterable<Uint8Array>,
    abortSignal?: AbortSignal,
  ): Promise<void> {
    const { CreateMultipartUploadCommand, UploadPartCommand, CompleteMultipartUploadCommand } = this.#sdk;
    const object = this.#object(name);
    const { UploadId } = await this.#asked(name, () => this.#client.send(new CreateMultipartUploadCommand(object)));
    const upload = { ...object, UploadId }, Parts: { PartNumber: number; ETag?: string }[] = [];
    try {
      const take = async (Body: Uint8Array) => {
        const PartNumber = Parts.length + 1;
        const command = new UploadPartCommand({ ...upload, PartNumber, Body });
        const { ETag } = await this.#asked(name, () => this.#client.send(command, { abortSignal }));
        Parts.push({ PartNumber, ETag });
      };
      await take(first);
      for await (const piece of rest) await take(piece);
      const complete = new CompleteMultipartUploadCommand({ ...upload, MultipartUpload: { Parts } });
      await this.#asked(name, () => this.#client.send(complete));
    } catch (error) {
      await this.#client.send(new this.#sdk.AbortMultipartUploadCommand(upload)).catch(() => {});
      throw error;
    }
  }

  #object(name: string): { Bucket: string; Key: string } {
    checkSnapshotName(name);
    const { bucket, prefix } = this.#bucket;
    return { Bucket: bucket, Key: `${prefix}${name}${EXTENSION}` };
  }

  #missing(name: string): never {
    throw missingSnapshot(name, this.place);
  }

  async #asked<T>(name: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const { name: kind } = error as SdkError;
      if (kind === "NoSuchKey") throw missingSnapshot(name, this.place);
      if (kind === "InvalidRange") throw new RangeError(`Can't read past the end of the snapshot ${name}`);
      throw translated(this.place, error as SdkError);
    }
  }
}

/** The snapshot that an object is; undefined for one of another kind. */
function nameOf(key: string, folder: string): string | undefined {
  const name = key.slice(folder.length, -EXTENSION.length);
  try {
    checkSnapshotName(name);
    return key.endsWith(EXTENSION) ? name : undefined;
  } catch {
    return undefined;
  }
}
