/** Routes each lead to the local service or the hosted API, and each batch id back to the side that created it. */

import { isInCanary, leadIdOf, readSwitches, type Switches } from './canary.js';
import { notComplete } from './errors.js';
import { collectRequests } from './lines.js';
import type { NativeResult } from './native.js';
import type { TextBlock } from './params.js';
import type {
  BatchClient,
  BatchCreated,
  BatchRequest,
  BatchRequests,
  BatchResult,
  BatchResults,
  BatchStatus,
  CallOptions,
  CreateOptions,
  ProcessingStatus,
  ResultBlock,
  Stage,
} from './types.js';
import { waitUntilEnded } from './wait.js';

export interface RouterOptions<Block extends ResultBlock = TextBlock> {
  local: BatchClient<Block>;
  hosted: BatchClient<Block>;
  /** Called at each createBatch; default: the environment. Read them from a source that can change without a deploy. */
  switches?: () => Switches;
}

export interface BatchRouter<Block extends ResultBlock = TextBlock> extends BatchClient<Block> {
  /** The requests that createBatch would send to each side, for applications that prefer two batches. */
  split(stage: Stage, requests: readonly BatchRequest[]): Sides;
}

export interface Sides {
  local: BatchRequest[];
  hosted: BatchRequest[];
}

interface Part<Block extends ResultBlock> {
  client: BatchClient<Block>;
  id: string;
}

const LOCAL_ID = /^batch_[0-9a-f]{12}$/;
/** Joins the two ids of a batch that runs on both sides. It occurs in no id of either side. */
const JOINT = '.';
const ORDER: readonly ProcessingStatus[] = ['collected', 'submitted', 'processing', 'ended'];

/**
 * A batch with leads on both sides has one id made of two. Its status is the sum of both, and it ends when both have
 * ended. Its results are the local ones, then the hosted ones.
 */
export function createBatchRouter<Block extends ResultBlock = TextBlock>({
  local,
  hosted,
  switches = readSwitches,
}: RouterOptions<Block>): BatchRouter<Block> {
  function partsOf(id: string): Part<Block>[] {
    return id.split(JOINT).map((part) => ({ client: LOCAL_ID.test(part) ? local : hosted, id: part }));
  }

  function split(stage: Stage, requests: readonly BatchRequest[], now: Switches = switches()): Sides {
    const { useLocal, canaryPercent } = now;
    const sides: Sides = { local: [], hosted: [] };
    for (const request of requests) {
      const isLocal = useLocal && isInCanary(leadIdOf(request, stage), canaryPercent);
      sides[isLocal ? 'local' : 'hosted'].push(request);
    }
    return sides;
  }

  async function createBatch(stage: Stage, requests: BatchRequests, options?: CreateOptions): Promise<BatchCreated> {
    const now = switches();
    if (!now.useLocal || now.canaryPercent <= 0) return hosted.createBatch(stage, requests, options);
    if (now.canaryPercent >= 100) return local.createBatch(stage, requests, options);
    const sides = split(stage, await collectRequests(requests), now);
    if (sides.local.length === 0) return hosted.createBatch(stage, sides.hosted, options);
    // The local side first: if the hosted side then fails, the local batch costs nothing and the call can be repeated.
    const first = await local.createBatch(stage, sides.local, options);
    if (sides.hosted.length === 0) return first;
    const second = await hosted.createBatch(stage, sides.hosted, options);
    return { id: first.id + JOINT + second.id };
  }

  async function getBatchStatus(id: string, options?: CallOptions): Promise<BatchStatus> {
    const parts = partsOf(id).map((part) => part.client.getBatchStatus(part.id, options));
    return { ...(await Promise.all(parts)).reduce(join), id };
  }

  async function getBatchResults(id: string, options?: CallOptions): Promise<BatchResults<Block>> {
    const parts = partsOf(id).map((part) => part.client.getBatchResults(part.id, options));
    return { results: (await Promise.all(parts)).flatMap((part) => part.results) };
  }

  function streamBatchResults(id: string, options?: CallOptions): AsyncGenerator<BatchResult<Block>> {
    return streamBoth(id, options, (part) => part.client.streamBatchResults(part.id, options));
  }

  function streamNativeResults(id: string, options?: CallOptions): AsyncGenerator<NativeResult> {
    return streamBoth(id, options, (part) => part.client.streamNativeResults(part.id, options));
  }

  async function* streamBoth<T>(
    id: string,
    options: CallOptions | undefined,
    read: (part: Part<Block>) => AsyncIterable<T>,
  ): AsyncGenerator<T> {
    const parts = partsOf(id);
    if (parts.length > 1) await Promise.all(parts.map((part) => requireEnd(part.client, part.id, options)));
    for (const part of parts) yield* read(part);
  }

  return {
    createBatch,
    getBatchStatus,
    getBatchResults,
    streamBatchResults,
    streamNativeResults,
    waitForBatch: (id, maxWaitMs, options) => waitUntilEnded(getBatchStatus, id, maxWaitMs, options),
    split: (stage, requests) => split(stage, requests),
  };
}

/** Otherwise half a stream would look complete. */
async function requireEnd(client: Pick<BatchClient, 'getBatchStatus'>, id: string, options: CallOptions | undefined): Promise<void> {
  const status = await client.getBatchStatus(id, options);
  if (status.processing_status !== 'ended') throw notComplete(id);
}

function join(one: BatchStatus, other: BatchStatus): BatchStatus {
  const earlier = ORDER.indexOf(one.processing_status) <= ORDER.indexOf(other.processing_status) ? one : other;
  return {
    id: one.id,
    processing_status: earlier.processing_status,
    counts: {
      total: one.counts.total + other.counts.total,
      succeeded: one.counts.succeeded + other.counts.succeeded,
      errored: one.counts.errored + other.counts.errored,
      pending: one.counts.pending + other.counts.pending,
    },
    created_at: Date.parse(one.created_at) <= Date.parse(other.created_at) ? one.created_at : other.created_at,
    updated_at: Date.parse(one.updated_at) >= Date.parse(other.updated_at) ? one.updated_at : other.updated_at,
  };
}
