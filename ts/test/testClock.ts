/** A clock that a sleep moves at once. */

import type { Clock } from '../llmAdapter.js';

export interface TestClock extends Clock {
  sleeps: number[];
}

export function testClock(onSleep: (numSleeps: number) => void = () => undefined): TestClock {
  let nowMs = 1_000;
  const sleeps: number[] = [];
  return {
    sleeps,
    now: () => nowMs,
    sleep: async (ms, signal) => {
      signal?.throwIfAborted();
      sleeps.push(ms);
      nowMs += ms;
      onSleep(sleeps.length);
    },
  };
}
