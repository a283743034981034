/** The types of the stage contract, and the interface of every batch client. */

import type { NativeResult, NativeStatus } from './native.js';
import type { BatchParams, TextBlock, ToolUseBlock } from './params.js';

/** The service's settings may define more stages. */
export type Stage = 'sales_intel' | 'subject' | 'email' | 'polish' | (string & {});

/** The name of a pool, a model or an adapter. */
export type ModelHint = 'mistral' | 'llama-70b' | (string & {});

/** `model_hint` overrides the pool of the stage. Other keys are your own. */
export interface BatchMetadata {
  model_hint?: ModelHint;
  leadId?: string | number;
  accountId?: string;
  [key: string]: unknown;
}

export interface BatchRequest {
  /** Unique in its batch; returned unchanged with the result. */
  custom_id: string;
  params: BatchParams;
  metadata?: BatchMetadata;
}

/**
 * An array is sent as one JSON body. Anything else is streamed, one request per line, in constant memory. A function is
 * called once per attempt and must return the same requests each time; an AsyncIterable can be read only once, so its
 * upload is not retried.
 */
export type BatchRequests = readonly BatchRequest[] | AsyncIterable<BatchRequest> | (() => AsyncIterable<BatchRequest>);

export interface BatchCreated {
  id: string;
}

/** `collected`: stored. `submitted`: planned. `processing`: a runner has started it. `ended`: results are available. */
export type ProcessingStatus = 'collected' | 'submitted' | 'processing' | 'ended';

/** Finished requests only. Canceled, expired and invalid requests are `errored`. */
export interface BatchCounts {
  total: number;
  succeeded: number;
  errored: number;
  pending: number;
}

export interface BatchStatus {
  id: string;
  processing_status: ProcessingStatus;
  counts: BatchCounts;
  /** RFC 3339, in UTC. */
  created_at: string;
  updated_at: string;
}

/** Tokens. Both are null at run time if a pool's HTTP endpoint does not report them; null adds up as 0. */
export interface BatchUsage {
  input_tokens: number;
  output_tokens: number;
}

/** What a result of the stage contract may contain: text, then tool calls if the request offers tools. */
export type ResultBlock = TextBlock | ToolUseBlock;

/** `Block`: text alone, unless your requests have tools: `SucceededResult<ResultBlock>`. */
export interface SucceededResult<Block extends ResultBlock = TextBlock> {
  custom_id: string;
  status: 'succeeded';
  message: { content: Block[] };
  usage: BatchUsage;
  error: null;
}

export interface ErroredResult {
  custom_id: string;
  status: 'errored';
  message: null;
  usage: null;
  /** `type`: such as `invalid_request_error` (it never ran), `model_error`, `refusal`, `canceled` or `expired`. */
  error: { type: string; message: string };
}

export type BatchResult<Block extends ResultBlock = TextBlock> = SucceededResult<Block> | ErroredResult;

export interface BatchResults<Block extends ResultBlock = TextBlock> {
  results: BatchResult<Block>[];
}

export interface CallOptions {
  /** Aborting it rejects the call with the signal's reason. */
  signal?: AbortSignal | undefined;
  /**
   * Maximum time without data in one attempt, in milliseconds: before the response begins, or between two pieces of it.
   * Default 60,000; 600,000 for a create.
   */
  timeoutMs?: number | undefined;
  /** Attempts after the first; default 4. */
  maxRetries?: number | undefined;
}

/** The hosted API has none of these. */
export interface CreateOptions extends CallOptions {
  /** The same key and requests return the same batch, other requests are rejected (422). Default: a key for each call. */
  idempotencyKey?: string | undefined;
  /** The pool, model or adapter of every request without a `model_hint` of its own. */
  modelHint?: ModelHint | undefined;
  /** The pool of every request, whatever it names. */
  pool?: string | undefined;
  /** 0 (runs first) to 9, among your own batches; default 5. */
  priority?: number | undefined;
  /** At most 16 pairs, shown with the batch; names up to 64 characters, values up to 512. */
  metadata?: Record<string, string> | undefined;
  /**
   * The id of an ended batch, or `auto` for the latest ones that the same model made: requests that are the same as one
   * that succeeded there get its result and do not run. With `auto` only requests with temperature 0 or a seed.
   */
  reuse?: 'auto' | (string & {}) | undefined;
  /** False: a request without a valid `custom_id` or `params` becomes an errored result. Default: it rejects the batch. */
  strict?: boolean | undefined;
}

export interface WaitOptions {
  signal?: AbortSignal | undefined;
  /** Called with every status received, including the last one. */
  onProgress?: ((status: BatchStatus) => void) | undefined;
}

/**
 * The interface of a batch service, implemented by the local client, the hosted client and the router. `Block`: what
 * results contain: `BatchClient<ResultBlock>` if your requests have tools.
 */
export interface BatchClient<Block extends ResultBlock = TextBlock> {
  /** Resolves once the batch is stored. */
  createBatch(stage: Stage, requests: BatchRequests, options?: CreateOptions): Promise<BatchCreated>;
  getBatchStatus(id: string, options?: CallOptions): Promise<BatchStatus>;
  /** Rejects with a BatchHttpError of status 400 while the batch has not ended. */
  getBatchResults(id: string, options?: CallOptions): Promise<BatchResults<Block>>;
  /** The same results one by one, in constant memory. */
  streamBatchResults(id: string, options?: CallOptions): AsyncIterable<BatchResult<Block>>;
  /** The same results with thinking, logprobs, choices and stop reasons, one by one. */
  streamNativeResults(id: string, options?: CallOptions): AsyncIterable<NativeResult>;
  /** Resolves with the status once it is `ended`; rejects with a BatchTimeoutError after `maxWaitMs` (30 minutes). */
  waitForBatch(id: string, maxWaitMs?: number, options?: WaitOptions): Promise<BatchStatus>;
}

export interface LocalClient<Block extends ResultBlock = TextBlock> extends BatchClient<Block> {
  /** The status with tokens, failures by reason, why requests wait, and what was reused. */
  getNativeStatus(id: string, options?: CallOptions): Promise<NativeStatus>;
}
