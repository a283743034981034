import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  BatchConnectionError,
  BatchHttpError,
  BatchTimeoutError,
  type BatchStatus,
  type ProcessingStatus,
} from '../llmAdapter.js';
import { waitUntilEnded } from '../wait.js';
import { testClock } from './testClock.js';

function status(processing_status: ProcessingStatus, pending: number): BatchStatus {
  const counts = { total: 10, succeeded: 10 - pending, errored: 0, pending };
  return {
    id: 'batch_1',
    processing_status,
    counts,
    created_at: '2025-01-07T10:00:00Z',
    updated_at: '2025-01-07T10:00:00Z',
  };
}

function refusal(code: number, retryAfterMs: number | null = null): BatchHttpError {
  return new BatchHttpError('GET /x', { status: code, body: '', requestId: null, retryAfterMs });
}

/** Gives or throws one after the other; the last one again and again. */
function answers(...list: (BatchStatus | Error)[]): () => Promise<BatchStatus> {
  let num = 0;
  return async () => {
    const next = list[Math.min(num++, list.length - 1)]!;
    if (next instanceof Error) throw next;
    return next;
  };
}

test('it asks at once, then after 1 s, half longer each time, and at most 30 s apart', async () => {
  const clock = testClock();
  await assert.rejects(
    waitUntilEnded(answers(status('processing', 5)), 'batch_1', 200_000, { clock }),
    BatchTimeoutError,
  );
  assert.deepEqual(clock.sleeps.slice(0, 4), [1000, 1500, 2250, 3375]);
  assert.equal(Math.max(...clock.sleeps), 30_000);
});

test('progress is told with every status, the last one included', async () => {
  const told: number[] = [];
  const get = answers(status('collected', 10), refusal(503), status('processing', 4), status('ended', 0));
  const ended = await waitUntilEnded(get, 'batch_1', undefined, {
    clock: testClock(),
    onProgress: ({ counts }) => told.push(counts.pending),
  });
  assert.equal(ended.processing_status, 'ended');
  assert.deepEqual(told, [10, 4, 0]);
});

test('an unavailable or overloaded service is waited for until the deadline', async () => {
  const away = new BatchConnectionError('connection refused');
  const get = answers(
    away,
    refusal(500),
    refusal(502),
    refusal(503),
    refusal(429),
    refusal(408),
    away,
    status('ended', 0),
  );
  assert.equal((await waitUntilEnded(get, 'batch_1', 600_000, { clock: testClock() })).processing_status, 'ended');
});

test('Retry-After makes the next look later, never earlier, and not beyond the deadline', async () => {
  const clock = testClock();
  await waitUntilEnded(answers(refusal(503, 7_000), refusal(503, 10), status('ended', 0)), 'batch_1', 600_000, {
    clock,
  });
  assert.deepEqual(clock.sleeps, [7_000, 1_500]);
  const short = testClock();
  await assert.rejects(
    waitUntilEnded(answers(refusal(503, 90_000)), 'batch_1', 5_000, { clock: short }),
    BatchTimeoutError,
  );
  assert.deepEqual(short.sleeps, [5_000]);
});

test('an error that a retry cannot fix rejects at once', async () => {
  for (const code of [400, 401, 403, 404, 422]) {
    const clock = testClock();
    await assert.rejects(waitUntilEnded(answers(refusal(code)), 'batch_1', 60_000, { clock }), { status: code });
    assert.deepEqual(clock.sleeps, []);
  }
});

test('the timeout is typed, holds the last status and what was last in the way, and the last look is at the deadline', async () => {
  const clock = testClock();
  const get = answers(status('processing', 7), refusal(503));
  await assert.rejects(waitUntilEnded(get, 'batch_1', 10_000, { clock }), (error: unknown) => {
    assert.ok(error instanceof BatchTimeoutError);
    assert.equal(error.batchId, 'batch_1');
    assert.equal(error.waitedMs, 10_000);
    assert.equal(error.lastStatus?.counts.pending, 7);
    assert.ok(error.cause instanceof BatchHttpError);
    assert.match(error.message, /batch_1 has not ended after 10 s: it is processing with 7 of 10 pending/);
    return true;
  });
  assert.equal(
    clock.sleeps.reduce((sum, ms) => sum + ms),
    10_000,
  );
});

test('no time at all is one look', async () => {
  const clock = testClock();
  assert.equal((await waitUntilEnded(answers(status('ended', 0)), 'batch_1', 0, { clock })).processing_status, 'ended');
  await assert.rejects(waitUntilEnded(answers(refusal(503)), 'batch_1', 0, { clock }), (error: unknown) => {
    assert.ok(error instanceof BatchTimeoutError);
    assert.equal(error.lastStatus, undefined);
    return true;
  });
});

test('an abort ends the wait with its own reason, in a sleep and in a call', async () => {
  const reason = new Error('shutting down');
  const inSleep = new AbortController();
  const clock = testClock((numSleeps) => numSleeps === 2 && inSleep.abort(reason));
  await assert.rejects(
    waitUntilEnded(answers(status('processing', 5)), 'batch_1', 60_000, { clock, signal: inSleep.signal }),
    reason,
  );

  const inCall = new AbortController();
  const hangs = (_: string, options: { signal?: AbortSignal | undefined }): Promise<BatchStatus> =>
    new Promise((_, reject) => {
      options.signal?.addEventListener('abort', () => reject(options.signal?.reason));
      inCall.abort(reason);
    });
  await assert.rejects(waitUntilEnded(hangs, 'batch_1', 60_000, { clock: testClock(), signal: inCall.signal }), reason);
});
