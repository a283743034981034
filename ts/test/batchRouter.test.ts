import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  createBatchRouter,
  isInCanary,
  type BatchClient,
  type BatchRequest,
  type BatchResult,
  type BatchStatus,
  type NativeResult,
  type Switches,
} from '../llmAdapter.js';
import { collectRequests } from '../lines.js';
import { waitUntilEnded } from '../wait.js';

const LOCAL = 'batch_a1b2c3d4e5f6';
const HOSTED = 'msgbatch_013Zva2CMHLNnXjNJJKqJ2EF';
const REQUESTS: BatchRequest[] = Array.from({ length: 100 }, (_, num) => ({
  custom_id: `lead_${num}_subject`,
  params: { messages: [{ role: 'user', content: 'Hi' }] },
}));

interface Side extends BatchClient {
  requests: BatchRequest[];
  asked: string[];
  state: BatchStatus['processing_status'];
}

/** A side in memory: what it was sent has succeeded. */
function side(id: string, created_at: string): Side {
  const it: Side = {
    requests: [],
    asked: [],
    state: 'ended',
    createBatch: async (_, requests) => {
      it.requests = await collectRequests(requests);
      return { id };
    },
    getBatchStatus: async (asked) => {
      it.asked.push(asked);
      const counts = { total: it.requests.length, succeeded: it.requests.length, errored: 0, pending: 0 };
      return { id, processing_status: it.state, counts, created_at, updated_at: created_at };
    },
    getBatchResults: async () => ({ results: it.requests.map(toResult) }),
    async *streamBatchResults() {
      yield* it.requests.map(toResult);
    },
    async *streamNativeResults() {
      yield* it.requests.map(toNative);
    },
    waitForBatch: (asked, maxWaitMs) => waitUntilEnded(it.getBatchStatus, asked, maxWaitMs),
  };
  return it;
}

function toResult({ custom_id }: BatchRequest): BatchResult {
  return { custom_id, status: 'errored', message: null, usage: null, error: { type: 'x', message: 'y' } };
}

function toNative({ custom_id }: BatchRequest): NativeResult {
  const nothing = { message: null, stop_reason: null, model: null, usage: null };
  return { custom_id, status: 'canceled', ...nothing, error: { type: 'canceled', message: 'y' } };
}

function setUp(switches: Switches) {
  const local = side(LOCAL, '2025-01-07T10:00:01Z');
  const hosted = side(HOSTED, '2025-01-07T10:00:00.500000+00:00');
  return { local, hosted, switches, router: createBatchRouter({ local, hosted, switches: () => switches }) };
}

test('the switch decides at each call, without a restart', async () => {
  const { router, switches } = setUp({ useLocal: false, canaryPercent: 100 });
  assert.deepEqual(await router.createBatch('subject', REQUESTS), { id: HOSTED });
  switches.useLocal = true;
  assert.deepEqual(await router.createBatch('subject', REQUESTS), { id: LOCAL });
  switches.canaryPercent = 0;
  assert.deepEqual(await router.createBatch('subject', REQUESTS), { id: HOSTED });
});

test('by default the switch is the environment', async () => {
  const router = createBatchRouter({ local: side(LOCAL, ''), hosted: side(HOSTED, '') });
  delete process.env['USE_LOCAL_LLM'];
  assert.deepEqual(await router.createBatch('subject', REQUESTS), { id: HOSTED });
  process.env['USE_LOCAL_LLM'] = 'true';
  assert.deepEqual(await router.createBatch('subject', REQUESTS), { id: LOCAL });
  delete process.env['USE_LOCAL_LLM'];
});

test('an id goes to the side it came from, whatever the switch says now', async () => {
  const { router, switches, local, hosted } = setUp({ useLocal: true, canaryPercent: 100 });
  const { id } = await router.createBatch('subject', REQUESTS);
  switches.useLocal = false;
  assert.equal((await router.waitForBatch(id)).id, LOCAL);
  assert.equal((await router.getBatchResults(id)).results.length, 100);
  await router.getBatchStatus(HOSTED);
  assert.deepEqual([local.asked, hosted.asked], [[LOCAL], [HOSTED]]);
});

test('a canary batch is split by lead, has one id, one status and every result', async () => {
  const { router, local, hosted } = setUp({ useLocal: true, canaryPercent: 30 });
  const { id } = await router.createBatch('subject', REQUESTS);
  assert.equal(id, `${LOCAL}.${HOSTED}`);
  assert.ok(local.requests.length > 0 && hosted.requests.length > 0);
  const expected = REQUESTS.filter((_, num) => isInCanary(String(num), 30));
  assert.deepEqual(local.requests, expected);
  assert.deepEqual(router.split('subject', REQUESTS), { local: local.requests, hosted: hosted.requests });

  assert.deepEqual(await router.getBatchStatus(id), {
    id,
    processing_status: 'ended',
    counts: { total: 100, succeeded: 100, errored: 0, pending: 0 },
    created_at: '2025-01-07T10:00:00.500000+00:00',
    updated_at: '2025-01-07T10:00:01Z',
  });
  const ids = (results: BatchResult[]): string[] => results.map((result) => result.custom_id).sort();
  const all = REQUESTS.map((request) => request.custom_id).sort();
  assert.deepEqual(ids((await router.getBatchResults(id)).results), all);
  const streamed: BatchResult[] = [];
  for await (const result of router.streamBatchResults(id)) streamed.push(result);
  assert.deepEqual(ids(streamed), all);
  const native: string[] = [];
  for await (const result of router.streamNativeResults(id)) native.push(result.custom_id ?? '');
  assert.deepEqual(native.sort(), all);
});

test('a split batch is as far as its slower side, and gives no result before both have ended', async () => {
  const { router, hosted } = setUp({ useLocal: true, canaryPercent: 30 });
  const { id } = await router.createBatch('subject', REQUESTS);
  hosted.state = 'processing';
  assert.equal((await router.getBatchStatus(id)).processing_status, 'processing');
  await assert.rejects(router.streamBatchResults(id)[Symbol.asyncIterator]().next(), { status: 400 });
  await assert.rejects(router.streamNativeResults(id)[Symbol.asyncIterator]().next(), { status: 400 });
});

test('a batch whose leads all go to one side is an ordinary batch of it, also from a stream', async () => {
  const { router, local } = setUp({ useLocal: true, canaryPercent: 30 });
  const sides = router.split('subject', REQUESTS);
  assert.deepEqual(await router.createBatch('subject', sides.local), { id: LOCAL });
  assert.deepEqual(await router.createBatch('subject', sides.hosted), { id: HOSTED });
  assert.deepEqual(
    await router.createBatch(
      'subject',
      (async function* () {
        yield* sides.local;
      })(),
    ),
    { id: LOCAL },
  );
  assert.equal(local.requests.length, sides.local.length);
});
