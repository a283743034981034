/**
 * The entry point: plain functions for the service at LOCAL_BATCH_URL (with LOCAL_BATCH_API_KEY), and other exports.
 * Both variables are read at each call.
 *
 * Every function rejects with a BatchHttpError for an error response, with a BatchConnectionError if no complete response
 * came in 5 attempts, and with a BatchError if LOCAL_BATCH_URL is missing or wrong. An abort rejects with its signal's
 * reason.
 */

import { createLocalClient } from './localClient.js';
import type { NativeResult, NativeStatus } from './native.js';
import type { TextBlock } from './params.js';
import type {
  BatchCreated,
  BatchRequests,
  BatchResult,
  BatchResults,
  BatchStatus,
  CallOptions,
  CreateOptions,
  ResultBlock,
  Stage,
  WaitOptions,
} from './types.js';

const client = createLocalClient<ResultBlock>();

/**
 * Creates a batch and resolves with its id once it is stored. An attempt may take 10 minutes without data. All attempts
 * carry one `Idempotency-Key`, so there is one batch, however often the connection breaks.
 *
 * @param stage Chooses the pool of the requests and the schema of their answers, as the service is configured.
 * @param requests An array (at most 256 MB as JSON by default), or for more a function that returns an AsyncIterable.
 * @throws BatchHttpError 400: the stage, a custom_id or the outline of a request is invalid, and the message says where;
 * no batch exists. A problem inside `params` is an errored result of that request instead. 401: the key is invalid.
 * 413: the batch is too large. 422: the idempotency key belongs to other requests. 429: too many open batches.
 * @throws BatchConnectionError The outcome is unknown: repeat the call with the same `idempotencyKey` and requests.
 */
export function createBatch(stage: Stage, requests: BatchRequests, options?: CreateOptions): Promise<BatchCreated> {
  return client.createBatch(stage, requests, options);
}

/**
 * Resolves with the state and the counts of a batch. Counts are of finished requests; they never decrease, and
 * `processing_status` never goes back.
 *
 * @throws BatchHttpError 404: there is no such batch, it belongs to another key, or it has expired (by default 24 hours
 * after its end).
 */
export function getBatchStatus(id: string, options?: CallOptions): Promise<BatchStatus> {
  return client.getBatchStatus(id, options);
}

/**
 * Resolves with all results, in the order of the requests, as one array in memory. A response above 500 MB is rejected:
 * use `streamBatchResults`.
 *
 * Text is in `result.message.content[0].text`. For requests with tools, call `getBatchResults<ResultBlock>(id)`: content
 * then also has `tool_use` blocks. Thinking, logprobs and further choices are in `streamNativeResults`.
 *
 * @throws BatchHttpError 400: the batch has not ended. 404: there is no such batch, or it has expired.
 */
export function getBatchResults<Block extends ResultBlock = TextBlock>(
  id: string,
  options?: CallOptions,
): Promise<BatchResults<Block>> {
  return client.getBatchResults(id, options) as Promise<BatchResults<Block>>;
}

/**
 * The results of `getBatchResults` one by one, in constant memory. After a broken connection it resumes after the last
 * result; it gives up after 5 attempts in a row without one. Leaving the loop closes the connection.
 *
 * @throws BatchHttpError At the first result, 400: the batch has not ended. 404: there is no such batch.
 */
export function streamBatchResults<Block extends ResultBlock = TextBlock>(
  id: string,
  options?: CallOptions,
): AsyncIterable<BatchResult<Block>> {
  return client.streamBatchResults(id, options) as AsyncIterable<BatchResult<Block>>;
}

/**
 * Resolves with the status once the batch has ended. Polls at once, after 1 s, 1.5 s, 2.25 s and so on, at most 30 s
 * apart, also while the service restarts or is overloaded.
 *
 * @param maxWaitMs In milliseconds; default 30 minutes.
 * @throws BatchTimeoutError The batch keeps running: wait again with the same id. `lastStatus` is what was known.
 * @throws BatchHttpError At once for 400, 401 and 404.
 */
export function waitForBatch(id: string, maxWaitMs?: number, options?: WaitOptions): Promise<BatchStatus> {
  return client.waitForBatch(id, maxWaitMs, options);
}

/**
 * Everything that the service has about each request, one by one, in the order of the requests: thinking, tool calls,
 * `stop_reason`, `model`, `logprobs`, several `choices`, token ids, cached tokens, and the digests of images.
 *
 * @throws BatchHttpError At the first result, 400: the batch has not ended. 404: there is no such batch.
 */
export function streamNativeResults(id: string, options?: CallOptions): AsyncIterable<NativeResult> {
  return client.streamNativeResults(id, options);
}

/**
 * Resolves with everything that the service knows about a batch: tokens, failures by reason with what to do, why
 * requests wait, and how many results were reused. Times are in seconds since 1970.
 *
 * @throws BatchHttpError 404: there is no such batch, or it has expired.
 */
export function getNativeStatus(id: string, options?: CallOptions): Promise<NativeStatus> {
  return client.getNativeStatus(id, options);
}

export { createBatchRouter, type BatchRouter, type RouterOptions } from './batchRouter.js';
export { isInCanary, leadIdOf, readSwitches, type Switches } from './canary.js';
export type { Clock } from './clock.js';
export { BatchConnectionError, BatchError, BatchHttpError, BatchTimeoutError, isTransient } from './errors.js';
export { createHostedClient, type HostedBatches, type HostedClientOptions } from './hostedClient.js';
export { createLocalClient, type LocalClientOptions } from './localClient.js';
export * from './native.js';
export * from './params.js';
export * from './types.js';
