import assert from 'node:assert/strict';
import { test } from 'node:test';

import { parseRetryAfter, retryDelayMs } from '../retry.js';

const SERVED_MS = Date.parse('Sun, 06 Nov 1994 08:49:00 GMT');

test('Retry-After is read as seconds or as a date, and anything else is ignored', () => {
  assert.equal(parseRetryAfter('5', SERVED_MS), 5_000);
  assert.equal(parseRetryAfter(' 0 ', SERVED_MS), 0);
  assert.equal(parseRetryAfter('Sun, 06 Nov 1994 08:49:37 GMT', SERVED_MS), 37_000);
  assert.equal(parseRetryAfter('Sun, 06 Nov 1994 08:48:00 GMT', SERVED_MS), 0);
  for (const value of [null, '', 'soon', '-5', 'NaN', '5 apples', '1994']) {
    assert.equal(parseRetryAfter(value, SERVED_MS), value === '1994' ? 1_994_000 : null, String(value));
  }
});

test('delays double, are half random and stay below eight seconds', () => {
  assert.deepEqual(
    [0, 1, 2, 3, 4, 9].map((attempt) => retryDelayMs(attempt, null, 1)),
    [500, 1000, 2000, 4000, 8000, 8000],
  );
  assert.equal(retryDelayMs(2, null, 0), 1000);
});

test('no retry comes before Retry-After, and a wait of hours is left to the caller', () => {
  assert.equal(retryDelayMs(0, 5_000, 0), 5_000);
  assert.equal(retryDelayMs(0, 5_000, 1), 5_250);
  assert.equal(retryDelayMs(0, 3_600_000, 0), null);
});
