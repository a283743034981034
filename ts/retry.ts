/** When to try again. Pure: knows no call and no clock. */

const FIRST_DELAY_MS = 500;
const DELAY_MAX_MS = 8_000;
/** A service that asks for longer than this is not waited for inside one call. */
const RETRY_AFTER_MAX_MS = 120_000;

/**
 * Milliseconds before attempt `attempt` + 1, or null where the service asks for a longer wait than one call makes.
 * Doubles from half a second; half of it is random, so that clients which failed together do not return together.
 * Never earlier than Retry-After. `random` in 0..1.
 */
export function retryDelayMs(attempt: number, retryAfterMs: number | null, random: number): number | null {
  const delayMs = Math.min(FIRST_DELAY_MS * 2 ** attempt, DELAY_MAX_MS);
  if (retryAfterMs === null) return delayMs * (0.5 + random / 2);
  if (retryAfterMs > RETRY_AFTER_MAX_MS) return null;
  return retryAfterMs + delayMs * (random / 2);
}

/** RFC 9110, 10.2.3: whole seconds or an HTTP date. Null where it is neither. `nowMs`: the server's time, if it told. */
export function parseRetryAfter(value: string | null, nowMs: number): number | null {
  if (value === null) return null;
  if (/^\s*\d+(\.\d+)?\s*$/.test(value)) return Number(value) * 1000;
  // Date.parse alone takes "-5" for a date.
  const atMs = /^\s*[A-Za-z]{3,9},? /.test(value) ? Date.parse(value) : Number.NaN;
  return Number.isNaN(atMs) ? null : Math.max(0, atMs - nowMs);
}
