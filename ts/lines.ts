/** Bytes to lines and requests to bytes. Knows no HTTP. */

import { BatchError } from './errors.js';
import type { BatchRequest, BatchRequests } from './types.js';

export const LINE_CHARS_MAX = 64 * 1024 * 1024;
const UPLOAD_CHUNK_CHARS = 64 * 1024;

export interface Line {
  text: string;
  /** False for a last line without its newline: it may have been cut off. */
  isTerminated: boolean;
}

/** Splits at `\n` only: other separators may stand inside a JSON string. Empty lines are left out. */
export async function* splitLines(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Line, void, undefined> {
  const decoder = new TextDecoder();
  let pieces: string[] = []; // of the line that is not complete yet; joined once, or a long line would cost its square
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
      throw new BatchError(`A line of the answer is longer than ${LINE_CHARS_MAX} characters. Is this the batch API?`);
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
 * Requests as a body of JSON lines, read only as fast as they are sent. Call `close` when it is no longer sent: `fetch`
 * lets go of a stream without a word when it is aborted.
 */
export class RequestLines {
  readonly stream: ReadableStream<Uint8Array>;
  /** What the source threw, if it did: the caller's own error, not one of the connection. */
  failure: { error: unknown } | null = null;
  readonly #source: AsyncIterator<BatchRequest>;
  #isClosed = false;

  /** `onPull` is called for each piece that the connection takes. */
  constructor(requests: AsyncIterable<BatchRequest>, onPull: () => void = () => undefined) {
    this.#source = requests[Symbol.asyncIterator]();
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

  /** Less than a chunk is the end. A closed source looks like one at its end, and half a batch must not. */
  async #read(): Promise<string> {
    let text = '';
    while (text.length < UPLOAD_CHUNK_CHARS) {
      const next = await this.#next();
      if (this.#isClosed) throw new BatchError('The upload was ended before its last request');
      if (next.done) break;
      text += `${JSON.stringify(next.value)}\n`;
    }
    return text;
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
