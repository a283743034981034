/** Converts bytes to lines and requests to bytes. Independent of HTTP. */

import { BatchError } from './errors.js';
import type { BatchRequest, BatchRequests, ModelHint } from './types.js';

export const LINE_CHARS_MAX = 64 * 1024 * 1024;
const UPLOAD_CHUNK_CHARS = 64 * 1024;

export interface Line {
  text: string;
  /** False for a last line without a newline, which may have been cut off. */
  isTerminated: boolean;
}

/** Splits only at `\n`, because JSON strings may contain other separators. Skips empty lines. */
export async function* splitLines(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Line, void, undefined> {
  const decoder = new TextDecoder();
  let pieces: string[] = []; // of the incomplete line; joined once, in linear time
  let numChars = 0;
  for await (const chunk of chunks) {
    const text = decoder.decode(chunk, { stream: true });
    let start = 0;
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', start)) {
      pieces.push(text.slice(start, end));
      start = end + 1;
      const line = pieces.join('');
      pieces = [];
      numChars = 0;
      if (line.trim()) yield { text: line, isTerminated: true };
    }
    pieces.push(text.slice(start));
    numChars += text.length - start;
    if (numChars > LINE_CHARS_MAX) {
      throw new BatchError(`A line of the response exceeds ${LINE_CHARS_MAX} characters. Check LOCAL_BATCH_URL.`);
    }
  }
  const rest = pieces.join('') + decoder.decode();
  if (rest.trim()) yield { text: rest, isTerminated: false };
}

export async function collectRequests(requests: BatchRequests): Promise<BatchRequest[]> {
  const all: BatchRequest[] = [];
  for await (const request of typeof requests === 'function' ? requests() : requests) all.push(request);
  return all;
}

/**
 * Requests as a body of JSON Lines, read only as fast as they are sent. Call `close` when sending ends, because an
 * aborted `fetch` does not cancel its stream.
 */
export class RequestLines {
  readonly stream: ReadableStream<Uint8Array>;
  /** What the source threw, if anything: the caller's own error, not a connection error. */
  failure: { error: unknown } | null = null;
  readonly #source: AsyncIterator<BatchRequest>;
  readonly #modelHint: ModelHint | undefined;
  #isClosed = false;

  /** `onPull` is called for each piece that is sent. `modelHint`: of requests without their own. */
  constructor(requests: AsyncIterable<BatchRequest>, onPull: () => void = () => undefined, modelHint?: ModelHint) {
    this.#source = requests[Symbol.asyncIterator]();
    this.#modelHint = modelHint;
    const encoder = new TextEncoder();
    this.stream = new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          onPull();
          const text = await this.#read();
          if (text) controller.enqueue(encoder.encode(text));
          if (text.length < UPLOAD_CHUNK_CHARS) controller.close();
        },
        cancel: () => this.close(),
      },
      { highWaterMark: 0 },
    );
  }

  close(): void {
    this.#isClosed = true;
    void this.#source.return?.();
  }

  /** Less than a chunk means the end. Throws for a closed source, so that a partial batch does not look complete. */
  async #read(): Promise<string> {
    let text = '';
    while (text.length < UPLOAD_CHUNK_CHARS) {
      const next = await this.#next();
      if (this.#isClosed) throw new BatchError('The upload was closed before its last request');
      if (next.done) break;
      text += `${JSON.stringify(this.#hinted(next.value))}\n`;
    }
    return text;
  }

  #hinted(request: BatchRequest): BatchRequest {
    if (this.#modelHint === undefined) return request;
    return { ...request, metadata: { model_hint: this.#modelHint, ...request.metadata } };
  }

  async #next(): Promise<IteratorResult<BatchRequest>> {
    try {
      return await this.#source.next();
    } catch (error) {
      this.failure = { error };
      throw error;
    }
  }
}
