/** Waits for the end of a batch, even while the service restarts. Independent of HTTP. */

import { systemClock, type Clock } from './clock.js';
import { BatchTimeoutError, isTransient, retryAfterMsOf } from './errors.js';
import { TimeLimit } from './timeLimit.js';
import type { BatchStatus, CallOptions, WaitOptions } from './types.js';

export const MAX_WAIT_MS = 30 * 60 * 1000;
const FIRST_DELAY_MS = 1_000;
const DELAY_FACTOR = 1.5;
const DELAY_MAX_MS = 30_000;
/** How long the last request may take beyond the deadline. */
const LAST_LOOK_MS = 5_000;

export interface WaitClock extends WaitOptions {
  clock?: Clock | undefined;
}

type GetStatus = (id: string, options: CallOptions) => Promise<BatchStatus>;

/**
 * Polls at once, then after 1 s, 1.5 s, 2.25 s ... at most 30 s apart, and once more at the deadline. Continues while
 * the service is unavailable or overloaded; other errors (400, 401, 404) reject at once.
 */
export async function waitUntilEnded(
  getStatus: GetStatus,
  id: string,
  maxWaitMs: number = MAX_WAIT_MS,
  options: WaitClock = {},
): Promise<BatchStatus> {
  const { signal, onProgress, clock = systemClock } = options;
  const startedMs = clock.now();
  let lastStatus: BatchStatus | undefined;
  let delayMs = FIRST_DELAY_MS;
  for (;;) {
    const leftBeforeMs = maxWaitMs - (clock.now() - startedMs);
    const news = await ask(getStatus, id, Math.max(leftBeforeMs, LAST_LOOK_MS), signal);
    if (news.status) {
      lastStatus = news.status;
      onProgress?.(lastStatus);
      if (lastStatus.processing_status === 'ended') return lastStatus;
    }
    const waitedMs = clock.now() - startedMs;
    const leftMs = maxWaitMs - waitedMs;
    if (leftMs <= 0) throw new BatchTimeoutError(id, waitedMs, lastStatus, news.error);
    await clock.sleep(Math.min(Math.max(delayMs, retryAfterMsOf(news.error) ?? 0), leftMs), signal);
    delayMs = Math.min(delayMs * DELAY_FACTOR, DELAY_MAX_MS);
  }
}

interface News {
  status?: BatchStatus;
  error?: unknown;
}

async function ask(getStatus: GetStatus, id: string, limitMs: number, caller: AbortSignal | undefined): Promise<News> {
  const limit = new TimeLimit(limitMs, caller);
  try {
    // The loop above retries.
    return { status: await getStatus(id, { signal: limit.signal, maxRetries: 0 }) };
  } catch (error) {
    caller?.throwIfAborted();
    if (!limit.isOver && !isTransient(error)) throw error;
    return { error };
  } finally {
    limit.end();
  }
}
