/**
 * BatchError                 something is wrong that trying again will not mend: mend the call or the settings
 * ├── BatchHttpError         the service refused: look at `status`; 408, 425, 429 and 5xx may be tried again
 * ├── BatchConnectionError   no whole answer came: the outcome is unknown, try again (with the same idempotency key)
 * └── BatchTimeoutError      waitForBatch gave up, the batch goes on: wait again with the same id
 *
 * An aborted call rejects with its signal's own reason instead.
 */

import type { BatchStatus } from './types.js';

export class BatchError extends Error {
  override name = 'BatchError';
}

export interface HttpAnswer {
  status: number;
  /** Parsed where it is JSON, else the beginning of its text. */
  body: unknown;
  /** `x-request-id`: what the service's log knows this request by. */
  requestId: string | null;
  retryAfterMs: number | null;
}

export class BatchHttpError extends BatchError {
  override name = 'BatchHttpError';
  readonly status: number;
  readonly body: unknown;
  readonly requestId: string | null;
  readonly retryAfterMs: number | null;

  constructor(what: string, answer: HttpAnswer, options?: ErrorOptions) {
    const id = answer.requestId === null ? '' : ` (request id ${answer.requestId})`;
    super(`${what} was answered ${answer.status}: ${detailOf(answer.body)}${id}`, options);
    this.status = answer.status;
    this.body = answer.body;
    this.requestId = answer.requestId;
    this.retryAfterMs = answer.retryAfterMs;
  }
}

export class BatchConnectionError extends BatchError {
  override name = 'BatchConnectionError';
}

export class BatchTimeoutError extends BatchError {
  override name = 'BatchTimeoutError';
  readonly batchId: string;
  readonly waitedMs: number;
  /** The newest status that arrived; undefined when none did. */
  readonly lastStatus: BatchStatus | undefined;

  constructor(batchId: string, waitedMs: number, lastStatus: BatchStatus | undefined, lastError: unknown) {
    const seen = lastStatus
      ? `it is ${lastStatus.processing_status} with ${lastStatus.counts.pending} of ${lastStatus.counts.total} pending`
      : 'no status arrived';
    super(
      `${batchId} has not ended after ${Math.round(waitedMs / 1000)} s: ${seen}. It goes on; wait for it again.`,
      lastError === undefined ? undefined : { cause: lastError },
    );
    this.batchId = batchId;
    this.waitedMs = waitedMs;
    this.lastStatus = lastStatus;
  }
}

const TRANSIENT_STATUSES = new Set([408, 425, 429]);

/** True where the same call may well succeed a little later. */
export function isTransient(error: unknown): boolean {
  if (error instanceof BatchHttpError) {
    return TRANSIENT_STATUSES.has(error.status) || error.status >= 500;
  }
  return error instanceof BatchConnectionError;
}

export function retryAfterMsOf(error: unknown): number | null {
  return error instanceof BatchHttpError ? error.retryAfterMs : null;
}

/** What the service itself says of such a batch, for where it is known without asking. */
export function notComplete(id: string): BatchHttpError {
  const body = { detail: 'Batch not yet complete' };
  return new BatchHttpError(`reading the results of ${id}`, { status: 400, body, requestId: null, retryAfterMs: null });
}

function detailOf(body: unknown): string {
  if (typeof body === 'object' && body !== null) {
    if ('detail' in body && typeof body.detail === 'string') return body.detail;
    return JSON.stringify(body).slice(0, 500);
  }
  return String(body).slice(0, 500) || 'no text';
}
