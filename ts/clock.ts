/** The clock as a parameter, so that tests need not wait. */

export interface Clock {
  /** Monotonic time in milliseconds. */
  now(): number;
  /** Rejects with the signal's reason when it is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

export const TIMER_MAX_MS = 2 ** 31 - 1; // longer timers fire at once

export const systemClock: Clock = {
  now: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const timer = setTimeout(finish, Math.min(ms, TIMER_MAX_MS));
      signal?.addEventListener('abort', cancel, { once: true });
      function finish(): void {
        signal?.removeEventListener('abort', cancel);
        resolve();
      }
      function cancel(): void {
        clearTimeout(timer);
        reject(signal?.reason);
      }
    }),
};
