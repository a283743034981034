/** Sends a call over HTTP, with retries and time limits, and translates every failure to a BatchError. */

import { systemClock, type Clock } from './clock.js';
import { BatchConnectionError, BatchError, BatchHttpError, isTransient, retryAfterMsOf } from './errors.js';
import { parseRetryAfter, retryDelayMs } from './retry.js';
import { TimeLimit } from './timeLimit.js';
import type { CallOptions } from './types.js';

export const MAX_RETRIES = 4;
const ERROR_BODY_BYTES_MAX = 64 * 1024;
/** V8's limit of a string is about this long. */
const TEXT_BYTES_MAX = 500_000_000;

/** Without the last two, Node's `fetch` keeps a copy of the whole body for a possible redirect. */
const STREAMED = { duplex: 'half', redirect: 'error', window: null };

export interface Endpoint {
  /** Without a trailing slash. */
  baseUrl: string;
  apiKey: string | undefined;
  fetch: typeof fetch;
  maxRetries?: number | undefined;
  clock?: Clock | undefined;
  /** 0..1, for the jitter. */
  random?: (() => number) | undefined;
}

export interface Body {
  content: string | ReadableStream<Uint8Array>;
  /** What the caller's source of the body threw. */
  failure?: () => { error: unknown } | null;
  /** Releases the source. */
  close?: () => void;
}

export interface Call extends CallOptions {
  method: 'GET' | 'POST';
  path: string;
  headers: Record<string, string>;
  /** Called once per attempt. Calls `onSent` for each piece sent. */
  body?: (onSent: () => void) => Body;
  timeoutMs: number;
}

/** Retries until `read` has read a success response. An attempt includes `read`. */
export async function send<T>(endpoint: Endpoint, call: Call, read: (answer: Answer) => Promise<T>): Promise<T> {
  const clock = endpoint.clock ?? systemClock;
  const random = endpoint.random ?? Math.random;
  const maxRetries = call.maxRetries ?? endpoint.maxRetries ?? MAX_RETRIES;
  for (let attempt = 0; ; attempt++) {
    try {
      return await read(await attemptOnce(endpoint, call));
    } catch (error) {
      const mayRetry = attempt < maxRetries && isTransient(error);
      const delayMs = mayRetry ? retryDelayMs(attempt, retryAfterMsOf(error), random()) : null;
      if (delayMs === null) throw error;
      await clock.sleep(delayMs, call.signal);
    }
  }
}

async function attemptOnce(endpoint: Endpoint, call: Call): Promise<Answer> {
  const what = `${call.method} ${call.path}`;
  const limit = new TimeLimit(call.timeoutMs, call.signal);
  const body = call.body?.(() => limit.restart());
  const translate = (error: unknown): unknown => {
    if (call.signal?.aborted) return call.signal.reason;
    const failure = body?.failure?.();
    if (failure) return failure.error;
    if (error instanceof BatchError) return error;
    const why = limit.isOver ? `no data for ${limit.ms} ms` : reasonOf(error);
    return new BatchConnectionError(`${what}: no complete response from ${endpoint.baseUrl}: ${why}`, { cause: error });
  };
  let answer: Answer;
  try {
    const init: RequestInit = {
      method: call.method,
      headers: { ...call.headers, ...authorization(endpoint) },
      signal: limit.signal,
    };
    if (body) {
      init.body = body.content;
      if (typeof body.content !== 'string') Object.assign(init, STREAMED);
    }
    answer = new Answer(await endpoint.fetch(endpoint.baseUrl + call.path, init), limit, translate);
  } catch (error) {
    limit.end();
    throw translate(error);
  } finally {
    body?.close?.();
  }
  if (!answer.isGood) throw await answer.toError(what);
  return answer;
}

function authorization(endpoint: Endpoint): Record<string, string> {
  return endpoint.apiKey ? { authorization: `Bearer ${endpoint.apiKey}` } : {};
}

/** `fetch` hides the reason in `cause`. */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  if (!(cause instanceof Error)) return String(cause);
  return cause.message || ('code' in cause ? String(cause.code) : cause.name);
}

/** A response whose body has not been read. Read it with one of its methods before the time limit. */
export class Answer {
  readonly #response: Response;
  readonly #limit: TimeLimit;
  readonly #translate: (error: unknown) => unknown;

  constructor(response: Response, limit: TimeLimit, translate: (error: unknown) => unknown) {
    this.#response = response;
    this.#limit = limit;
    this.#translate = translate;
  }

  get isGood(): boolean {
    return this.#response.ok;
  }

  get contentType(): string {
    return this.#response.headers.get('content-type') ?? '';
  }

  /** Leaving the loop early closes the connection. The time limit pauses while the consumer works. */
  async *chunks(): AsyncGenerator<Uint8Array, void, undefined> {
    const reader = this.#response.body?.getReader();
    let isDone = reader === undefined;
    try {
      while (reader && !isDone) {
        const next = await this.#next(reader);
        isDone = next.done;
        if (next.value) yield next.value;
      }
    } finally {
      this.#limit.end();
      if (!isDone) await reader?.cancel().catch(() => undefined); // it may already be broken
    }
  }

  async #next(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<{ done: boolean; value?: Uint8Array }> {
    this.#limit.restart();
    try {
      const { done, value } = await reader.read();
      return value ? { done, value } : { done };
    } catch (error) {
      throw this.#translate(error);
    } finally {
      this.#limit.pause();
    }
  }

  async json(): Promise<unknown> {
    const text = await this.#text(TEXT_BYTES_MAX);
    if (text.isCut) {
      throw new BatchError(`The response is larger than ${TEXT_BYTES_MAX} bytes. Use streamBatchResults instead.`);
    }
    try {
      return JSON.parse(text.value);
    } catch (error) {
      throw this.#translate(error);
    }
  }

  async toError(what: string): Promise<unknown> {
    const { headers, status } = this.#response;
    const servedMs = Date.parse(headers.get('date') ?? '');
    const retryAfterMs = parseRetryAfter(headers.get('retry-after'), Number.isNaN(servedMs) ? Date.now() : servedMs);
    let text = '';
    try {
      text = (await this.#text(ERROR_BODY_BYTES_MAX)).value;
    } catch (error) {
      if (!(error instanceof BatchConnectionError)) return error; // the status alone is enough, except after an abort
    }
    const requestId = headers.get('x-request-id') ?? headers.get('request-id');
    return new BatchHttpError(what, { status, body: jsonOrText(text), requestId, retryAfterMs });
  }

  async #text(bytesMax: number): Promise<{ value: string; isCut: boolean }> {
    const decoder = new TextDecoder();
    const pieces: string[] = [];
    let numBytes = 0;
    for await (const chunk of this.chunks()) {
      numBytes += chunk.length;
      if (numBytes > bytesMax) return { value: pieces.join(''), isCut: true };
      pieces.push(decoder.decode(chunk, { stream: true }));
    }
    pieces.push(decoder.decode());
    return { value: pieces.join(''), isCut: false };
  }
}

function jsonOrText(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
