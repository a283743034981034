/** Computes when to retry. Pure. */

const FIRST_DELAY_MS = 500;
const DELAY_MAX_MS = 8_000;
/** A call does not wait longer than this for Retry-After. */
const RETRY_AFTER_MAX_MS = 120_000;

/**
 * Milliseconds before attempt `attempt` + 1, or null if Retry-After is longer than a call waits. Doubles from half a
 * second; half of it is random, so that clients that failed together do not retry together. Never earlier than
 * Retry-After. `random`: 0..1.
 */
export function retryDelayMs(attempt: number, retryAfterMs: number | null, random: number): number | null {
  const delayMs = Math.min(FIRST_DELAY_MS * 2 ** attempt, DELAY_MAX_MS);
  if (retryAfterMs === null) return delayMs * (0.5 + random / 2);
  if (retryAfterMs > RETRY_AFTER_MAX_MS) return null;
  return retryAfterMs + delayMs * (random / 2);
}

/** RFC 9110, 10.2.3: seconds or an HTTP date; null if it is neither. `nowMs`: the server's time, if known. */
export function parseRetryAfter(value: string | null, nowMs: number): number | null {
  if (value === null) return null;
  if (/^\s*\d+(\.\d+)?\s*$/.test(value)) return Number(value) * 1000;
  // Date.parse alone accepts "-5" as a date.
  const atMs = /^\s*[A-Za-z]{3,9},? /.test(value) ? Date.parse(value) : Number.NaN;
  return Number.isNaN(atMs) ? null : Math.max(0, atMs - nowMs);
}
