/** The client of a batchfile service: the calls of the stage contract, and the native results and status. */

import { randomUUID } from 'node:crypto';

import { systemClock, type Clock } from './clock.js';
import { BatchConnectionError, BatchError, isTransient, retryAfterMsOf } from './errors.js';
import { RequestLines, splitLines, type Line } from './lines.js';
import type { NativeResult, NativeStatus } from './native.js';
import type { TextBlock } from './params.js';
import { retryDelayMs } from './retry.js';
import { MAX_RETRIES, send, type Body, type Call, type Endpoint } from './transport.js';
import type {
  BatchCreated,
  BatchRequest,
  BatchRequests,
  BatchResult,
  BatchResults,
  BatchStatus,
  CallOptions,
  CreateOptions,
  LocalClient,
  ModelHint,
  ResultBlock,
  Stage,
  WaitOptions,
} from './types.js';
import { waitUntilEnded } from './wait.js';

const BATCHES = '/v1/messages/batches';
const NATIVE = '/api/batches';
const TIMEOUT_MS = 60_000;
/** A create responds only after the whole body is stored. */
const CREATE_TIMEOUT_MS = 600_000;
const JSON_TYPE = 'application/json';
const LINES_TYPE = 'application/x-ndjson';

export interface LocalClientOptions {
  /** Default: LOCAL_BATCH_URL, read at each call. */
  baseUrl?: string;
  /** Default: LOCAL_BATCH_API_KEY, read at each call. */
  apiKey?: string;
  fetch?: typeof fetch;
  /** Maximum time without data in an attempt; default 60 s, and 10 minutes for a create. */
  timeoutMs?: number;
  createTimeoutMs?: number;
  /** Attempts after the first; default 4. */
  maxRetries?: number;
  clock?: Clock;
  random?: () => number;
}

/** A client with its own address, key and limits. It has no state: make as many as you like. */
export function createLocalClient<Block extends ResultBlock = TextBlock>(
  options: LocalClientOptions = {},
): LocalClient<Block> {
  const call = (path: string, accept: string, callOptions: CallOptions): Call => ({
    method: 'GET',
    path,
    headers: { accept, 'batchfile-dialect': 'stage' },
    signal: callOptions.signal,
    maxRetries: callOptions.maxRetries,
    timeoutMs: callOptions.timeoutMs ?? options.timeoutMs ?? TIMEOUT_MS,
  });

  async function createBatch(
    stage: Stage,
    requests: BatchRequests,
    createOptions: CreateOptions = {},
  ): Promise<BatchCreated> {
    const isArray = Array.isArray(requests);
    const base = call(BATCHES + queryOf(isArray ? undefined : stage, createOptions), JSON_TYPE, createOptions);
    const create: Call = {
      ...base,
      method: 'POST',
      headers: {
        ...base.headers,
        'content-type': isArray ? JSON_TYPE : LINES_TYPE,
        // One key for all attempts, so that they create one batch.
        'idempotency-key': createOptions.idempotencyKey ?? randomUUID(),
      },
      body: bodyOf(stage, requests, createOptions.modelHint),
      timeoutMs: createOptions.timeoutMs ?? options.createTimeoutMs ?? CREATE_TIMEOUT_MS,
    };
    if (!isArray && typeof requests !== 'function') create.maxRetries = 0;
    const answer = await send(endpointOf(options), create, (good) => good.json());
    return expect<BatchCreated>(answer, 'id');
  }

  async function getBatchStatus(id: string, callOptions: CallOptions = {}): Promise<BatchStatus> {
    const asked = call(`${BATCHES}/${encodeURIComponent(id)}`, JSON_TYPE, callOptions);
    const answer = await send(endpointOf(options), asked, (good) => good.json());
    return expect<BatchStatus>(answer, 'processing_status', 'counts');
  }

  async function getNativeStatus(id: string, callOptions: CallOptions = {}): Promise<NativeStatus> {
    const asked = call(`${NATIVE}/${encodeURIComponent(id)}`, JSON_TYPE, callOptions);
    const answer = await send(endpointOf(options), asked, (good) => good.json());
    return expect<NativeStatus>(answer, 'state', 'total');
  }

  async function getBatchResults(id: string, callOptions: CallOptions = {}): Promise<BatchResults<Block>> {
    const asked = call(`${BATCHES}/${encodeURIComponent(id)}/results`, JSON_TYPE, callOptions);
    const answer = await send(endpointOf(options), asked, (good) => good.json());
    return expect<BatchResults<Block>>(answer, 'results');
  }

  function streamBatchResults(id: string, callOptions?: CallOptions): AsyncGenerator<BatchResult<Block>> {
    return streamLines(`${BATCHES}/${encodeURIComponent(id)}/results`, callOptions);
  }

  function streamNativeResults(id: string, callOptions?: CallOptions): AsyncGenerator<NativeResult> {
    return streamLines(`${NATIVE}/${encodeURIComponent(id)}/results`, callOptions);
  }

  async function* streamLines<T>(path: string, callOptions: CallOptions = {}): AsyncGenerator<T> {
    // One loop retries both failed requests and interrupted responses.
    const asked = call(path, LINES_TYPE, { ...callOptions, maxRetries: 0 });
    const maxResumes = callOptions.maxRetries ?? options.maxRetries ?? MAX_RETRIES;
    const clock = options.clock ?? systemClock;
    const random = options.random ?? Math.random;
    let numGiven = 0;
    let numFailures = 0; // since the last result
    for (;;) {
      try {
        for await (const line of resultLines(endpointOf(options), asked, numGiven)) {
          yield parseResult<T>(line);
          numGiven++;
          numFailures = 0;
        }
        return;
      } catch (error) {
        // An ended batch never changes, so an interrupted stream resumes after the last result.
        const mayRetry = numFailures < maxResumes && isTransient(error);
        const delayMs = mayRetry ? retryDelayMs(numFailures++, retryAfterMsOf(error), random()) : null;
        if (delayMs === null) throw error;
        await clock.sleep(delayMs, callOptions.signal);
      }
    }
  }

  function waitForBatch(id: string, maxWaitMs?: number, waitOptions: WaitOptions = {}): Promise<BatchStatus> {
    return waitUntilEnded(getBatchStatus, id, maxWaitMs, { ...waitOptions, clock: options.clock });
  }

  return {
    createBatch,
    getBatchStatus,
    getBatchResults,
    streamBatchResults,
    waitForBatch,
    streamNativeResults,
    getNativeStatus,
  };
}

async function* resultLines(endpoint: Endpoint, call: Call, numSkipped: number): AsyncGenerator<Line> {
  const answer = await send(endpoint, call, async (good) => good);
  let num = 0;
  for await (const line of splitLines(answer.chunks())) {
    if (num++ >= numSkipped) yield line;
  }
}

function parseResult<T>(line: Line): T {
  try {
    return JSON.parse(line.text) as T;
  } catch (error) {
    if (!line.isTerminated) throw new BatchConnectionError('The results were cut off within a line', { cause: error });
    throw new BatchError('A line of the results is not JSON. Check LOCAL_BATCH_URL.', { cause: error });
  }
}

/** `?stage=...&reuse=...`, empty without options. `stage`: of a body that cannot contain it. */
function queryOf(stage: Stage | undefined, options: CreateOptions): string {
  const { pool, priority, reuse, strict, metadata = {} } = options;
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ stage, pool, priority, reuse, strict })) {
    if (value !== undefined) query.append(name, String(value));
  }
  for (const [name, value] of Object.entries(metadata)) query.append('metadata', `${name}=${value}`);
  const text = query.toString();
  return text && `?${text}`;
}

/** Reuses the body of an array for all attempts; creates a new stream for each. */
function bodyOf(stage: Stage, requests: BatchRequests, modelHint?: ModelHint): (onSent: () => void) => Body {
  if (Array.isArray(requests)) {
    const body = { content: JSON.stringify({ stage, model_hint: modelHint, requests }) };
    return () => body;
  }
  const source = requests as Exclude<BatchRequests, readonly BatchRequest[]>;
  return (onSent) => {
    const lines = new RequestLines(typeof source === 'function' ? source() : source, onSent, modelHint);
    return { content: lines.stream, failure: () => lines.failure, close: () => lines.close() };
  };
}

function endpointOf(options: LocalClientOptions): Endpoint {
  const given = options.baseUrl ?? process.env['LOCAL_BATCH_URL'];
  const example = 'Set it to the URL of a batchfile service, for example http://127.0.0.1:8000';
  if (!given) throw new BatchError(`LOCAL_BATCH_URL is not set. ${example}`);
  if (!/^https?:\/\/[^\s@]+$/i.test(given)) {
    throw new BatchError(`LOCAL_BATCH_URL is "${given}", which is not an http(s) URL without credentials. ${example}`);
  }
  return {
    baseUrl: given.replace(/\/+$/, ''),
    apiKey: options.apiKey ?? process.env['LOCAL_BATCH_API_KEY'],
    fetch: options.fetch ?? globalThis.fetch,
    maxRetries: options.maxRetries,
    clock: options.clock,
    random: options.random,
  };
}

/** Checks the response, because the URL may belong to another service. */
function expect<T>(answer: unknown, ...keys: string[]): T {
  const missing = keys.filter((key) => typeof answer !== 'object' || answer === null || !(key in answer));
  if (missing.length > 0) {
    throw new BatchError(`The response has no "${missing.join('", "')}". Check LOCAL_BATCH_URL.`);
  }
  return answer as T;
}
