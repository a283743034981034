/**
 * BatchError                 a retry will not help: fix the call or the settings
 * ├── BatchHttpError         an error response: see `status`; 408, 425, 429 and 5xx can be retried
 * ├── BatchConnectionError   no complete response, so the outcome is unknown: retry with the same idempotency key
 * └── BatchTimeoutError      waitForBatch timed out, the batch keeps running: wait again with the same id
 *
 * An aborted call rejects with its signal's reason instead.
 */

import type { BatchStatus } from './types.js';

export class BatchError extends Error {
  override name = 'BatchError';
}

export interface HttpAnswer {
  status: number;
  /** Parsed if it is JSON, otherwise the beginning of its text. */
  body: unknown;
  /** `x-request-id`: identifies this request in the service's log. */
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
    super(`${what} failed with status ${answer.status}: ${detailOf(answer.body)}${id}`, options);
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
  /** The last status received; undefined if there was none. */
  readonly lastStatus: BatchStatus | undefined;

  constructor(batchId: string, waitedMs: number, lastStatus: BatchStatus | undefined, lastError: unknown) {
    const seen = lastStatus
      ? `it is ${lastStatus.processing_status} with ${lastStatus.counts.pending} of ${lastStatus.counts.total} pending`
      : 'no status was received';
    super(
      `${batchId} has not ended after ${Math.round(waitedMs / 1000)} s: ${seen}. It keeps running; wait for it again.`,
      lastError === undefined ? undefined : { cause: lastError },
    );
    this.batchId = batchId;
    this.waitedMs = waitedMs;
    this.lastStatus = lastStatus;
  }
}

const TRANSIENT_STATUSES = new Set([408, 425, 429]);

/** True if the same call may succeed when it is retried. */
export function isTransient(error: unknown): boolean {
  if (error instanceof BatchHttpError) {
    return TRANSIENT_STATUSES.has(error.status) || error.status >= 500;
  }
  return error instanceof BatchConnectionError;
}

export function retryAfterMsOf(error: unknown): number | null {
  return error instanceof BatchHttpError ? error.retryAfterMs : null;
}

/** The service's own error for such a batch, for cases where no request is needed. */
export function notComplete(id: string): BatchHttpError {
  const body = { detail: 'Batch not yet complete' };
  return new BatchHttpError(`reading the results of ${id}`, { status: 400, body, requestId: null, retryAfterMs: null });
}

function detailOf(body: unknown): string {
  if (typeof body === 'object' && body !== null) {
    if ('detail' in body && typeof body.detail === 'string') return body.detail;
    return JSON.stringify(body).slice(0, 500);
  }
  return String(body).slice(0, 500) || 'empty body';
}
