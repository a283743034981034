/** The hosted Message Batches API behind the same interface, in the formats of the stage contract. Imports no SDK. */

import { BatchConnectionError, BatchError, BatchHttpError, notComplete } from './errors.js';
import { collectRequests } from './lines.js';
import type { NativeBlock, NativeFailure, NativeResult, StopReason } from './native.js';
import type { TextBlock, ToolUseBlock } from './params.js';
import type {
  BatchClient,
  BatchCreated,
  BatchRequest,
  BatchRequests,
  BatchResult,
  BatchResults,
  BatchStatus,
  CallOptions,
  ErroredResult,
  ResultBlock,
  Stage,
} from './types.js';
import { waitUntilEnded } from './wait.js';

const MAX_TOKENS = 2048;

/** The used part of the Anthropic SDK's `client.messages.batches`; works with all its versions. */
export interface HostedBatches {
  create(body: { requests: HostedRequest[] }): PromiseLike<{ id: string }>;
  retrieve(id: string): PromiseLike<HostedBatch>;
  results(id: string): PromiseLike<AsyncIterable<HostedResult>>;
}

/** `params` has every key of the request; these are the ones that every version of the SDK requires. */
export interface HostedRequest {
  custom_id: string;
  params: { model: string; max_tokens: number; messages: readonly object[] };
}

export interface HostedBatch {
  id: string;
  processing_status: string;
  created_at: string;
  ended_at: string | null;
  cancel_initiated_at: string | null;
  request_counts: { processing: number; succeeded: number; errored: number; canceled: number; expired: number };
}

export interface HostedResult {
  custom_id: string;
  result:
    | { type: 'succeeded'; message: HostedAnswer }
    | { type: 'errored'; error: { error: { type: string; message: string } } }
    | { type: 'canceled' }
    | { type: 'expired' };
}

export interface HostedAnswer {
  model?: string;
  stop_reason?: string | null;
  stop_sequence?: string | null;
  content: readonly { type: string }[];
  usage: {
    input_tokens: number;
    output_tokens: number;
    cache_creation_input_tokens?: number | null;
    cache_read_input_tokens?: number | null;
  };
}

export interface HostedClientOptions {
  batches: HostedBatches;
  /** Returns the hosted model for a request. */
  model: (stage: Stage, request: BatchRequest) => string;
  /**
   * Newer versions of the hosted API reject temperature, top_p and top_k. 'send' (default) sends them anyway; 'drop'
   * leaves them out.
   */
  sampling?: 'send' | 'drop';
}

/** Results are in the hosted API's order: match them by custom_id. An abort does not end the SDK's own request. */
export function createHostedClient<Block extends ResultBlock = TextBlock>({
  batches,
  model,
  sampling = 'send',
}: HostedClientOptions): BatchClient<Block> {
  async function createBatch(stage: Stage, requests: BatchRequests, options?: CallOptions): Promise<BatchCreated> {
    const all = await collectRequests(requests);
    const hosted = all.map((request) => toHosted(request, model(stage, request), sampling === 'send'));
    const { id } = await ask(() => batches.create({ requests: hosted }), 'creating a hosted batch', options);
    return { id };
  }

  async function getBatchStatus(id: string, options?: CallOptions): Promise<BatchStatus> {
    return toStatus(await ask(() => batches.retrieve(id), `reading hosted batch ${id}`, options));
  }

  function streamBatchResults(id: string, options?: CallOptions): AsyncGenerator<BatchResult<Block>> {
    return stream(id, options, (line) => toResult(line) as BatchResult<Block>);
  }

  function streamNativeResults(id: string, options?: CallOptions): AsyncGenerator<NativeResult> {
    return stream(id, options, toNative);
  }

  async function* stream<T>(
    id: string,
    options: CallOptions | undefined,
    convert: (line: HostedResult) => T,
  ): AsyncGenerator<T> {
    const status = await getBatchStatus(id, options);
    if (status.processing_status !== 'ended') throw notComplete(id);
    const what = `reading the results of hosted batch ${id}`;
    const results = await ask(() => batches.results(id), what, options);
    const iterator = results[Symbol.asyncIterator]();
    try {
      for (;;) {
        const next = await ask(() => iterator.next(), what, options);
        if (next.done) return;
        yield convert(next.value);
      }
    } finally {
      void iterator.return?.();
    }
  }

  async function getBatchResults(id: string, options?: CallOptions): Promise<BatchResults<Block>> {
    const results: BatchResult<Block>[] = [];
    for await (const result of streamBatchResults(id, options)) results.push(result);
    return { results };
  }

  return {
    createBatch,
    getBatchStatus,
    getBatchResults,
    streamBatchResults,
    streamNativeResults,
    waitForBatch: (id, maxWaitMs, options) => waitUntilEnded(getBatchStatus, id, maxWaitMs, options),
  };
}

function toHosted({ custom_id, params }: BatchRequest, model: string, hasSampling: boolean): HostedRequest {
  const { temperature, top_p, top_k, ...rest } = params;
  const sampling = hasSampling ? params : rest;
  return { custom_id, params: { ...sampling, model, max_tokens: params.max_tokens ?? MAX_TOKENS } };
}

function toStatus(batch: HostedBatch): BatchStatus {
  const { processing, succeeded, errored, canceled, expired } = batch.request_counts;
  const lost = errored + canceled + expired;
  return {
    id: batch.id,
    processing_status: batch.processing_status === 'ended' ? 'ended' : 'processing',
    counts: { total: processing + succeeded + lost, succeeded, errored: lost, pending: processing },
    created_at: batch.created_at,
    updated_at: batch.ended_at ?? batch.cancel_initiated_at ?? batch.created_at,
  };
}

function toResult({ custom_id, result }: HostedResult): BatchResult<ResultBlock> {
  if (result.type !== 'succeeded') return toErrored(custom_id, errorOf(result));
  const { content, usage, stop_reason } = result.message;
  if (stop_reason === 'refusal') return toErrored(custom_id, refusalOf(content));
  return {
    custom_id,
    status: 'succeeded',
    message: { content: content.flatMap(toBlock) },
    usage: { input_tokens: usage.input_tokens + cachedOf(usage), output_tokens: usage.output_tokens },
    error: null,
  };
}

function toNative({ custom_id, result }: HostedResult): NativeResult {
  if (result.type !== 'succeeded') {
    const status = result.type;
    return { custom_id, status, ...NOTHING, error: errorOf(result) };
  }
  const { content, usage, stop_reason, stop_sequence, model = '' } = result.message;
  return {
    custom_id,
    status: 'succeeded',
    message: { content: content as NativeBlock[] }, // with blocks of other types and keys, if there are any
    stop_reason: (stop_reason ?? 'end_turn') as StopReason,
    model,
    usage: {
      input_tokens: usage.input_tokens + cachedOf(usage),
      output_tokens: usage.output_tokens,
      cached_tokens: usage.cache_read_input_tokens ?? 0,
    },
    error: null,
    ...(typeof stop_sequence === 'string' && { stop_sequence }),
  };
}

const NOTHING: Pick<NativeFailure, 'message' | 'stop_reason' | 'model' | 'usage'> = {
  message: null,
  stop_reason: null,
  model: null,
  usage: null,
};

function toErrored(custom_id: string, error: ErroredResult['error']): ErroredResult {
  return { custom_id, status: 'errored', message: null, usage: null, error };
}

function errorOf(result: Exclude<HostedResult['result'], { type: 'succeeded' }>): ErroredResult['error'] {
  if (result.type === 'errored') return { type: result.error.error.type, message: result.error.error.message };
  return { type: result.type, message: `The hosted batch ${result.type} before this request ran` };
}

/** The same error as the service's, because the contract has no field for refusals. */
function refusalOf(content: HostedAnswer['content']): ErroredResult['error'] {
  const text = content.filter(isText).map((block) => block.text).join('').trim();
  return { type: 'refusal', message: `The model refused to answer${text ? `: ${text}` : '.'}` };
}

function cachedOf(usage: HostedAnswer['usage']): number {
  return (usage.cache_creation_input_tokens ?? 0) + (usage.cache_read_input_tokens ?? 0);
}

/** Thinking is left out, as by the service, because callers take the first block for the text. */
function toBlock(block: { type: string }): ResultBlock[] {
  if (isText(block)) return [{ type: 'text', text: block.text }];
  if (!isToolUse(block)) return [];
  return [{ type: 'tool_use', id: block.id, name: block.name, input: block.input }];
}

function isText(block: { type: string }): block is TextBlock {
  return block.type === 'text';
}

function isToolUse(block: { type: string }): block is ToolUseBlock {
  return block.type === 'tool_use';
}

async function ask<T>(request: () => PromiseLike<T>, what: string, options: CallOptions | undefined): Promise<T> {
  const signal = options?.signal;
  signal?.throwIfAborted();
  let abort: () => void = () => undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal?.reason);
  });
  signal?.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([request(), aborted]);
  } catch (error) {
    signal?.throwIfAborted();
    throw translate(error, what);
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

/** Recognizes the SDK's errors by their fields, because its package is not imported. */
function translate(error: unknown, what: string): unknown {
  if (!(error instanceof Error) || error instanceof BatchError) return error;
  const foreign = error as Error & { status?: unknown; error?: unknown; requestID?: unknown; request_id?: unknown };
  if (typeof foreign.status === 'number') {
    const requestId = foreign.requestID ?? foreign.request_id;
    const answer = {
      status: foreign.status,
      body: foreign.error ?? foreign.message,
      requestId: typeof requestId === 'string' ? requestId : null,
      retryAfterMs: null,
    };
    return new BatchHttpError(what, answer, { cause: error });
  }
  if (!/Connection/.test(error.constructor.name)) return error;
  return new BatchConnectionError(`${what} failed without a response: ${error.message}`, { cause: error });
}
