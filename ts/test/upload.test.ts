import assert from 'node:assert/strict';
import { test } from 'node:test';

import { BatchConnectionError, createLocalClient, type BatchRequest } from '../llmAdapter.js';
import { hangUp, json, serve, type Seen } from './fakeServer.js';
import { golden, goldenReply } from './golden.js';
import { testClock } from './testClock.js';

const REQUESTS: BatchRequest[] = golden('create').request.body.requests;

async function* some(): AsyncGenerator<BatchRequest> {
  yield* REQUESTS;
}

function client(baseUrl: string): ReturnType<typeof createLocalClient> {
  return createLocalClient({ baseUrl, clock: testClock() });
}

test('an AsyncIterable is sent as lines, with the stage in the query', async () => {
  const server = await serve(goldenReply('create'));
  assert.deepEqual(await client(server.url).createBatch('sales_intel', some()), golden('create').response.body);
  const seen = server.seen[0]!;
  assert.equal(seen.path, '/v1/messages/batches?stage=sales_intel');
  assert.equal(seen.headers['content-type'], 'application/x-ndjson');
  assert.deepEqual(
    seen.body
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line)),
    REQUESTS,
  );
});

test('options are in the query, and a hint reaches the requests without their own', async () => {
  const server = await serve(goldenReply('create'));
  const [first, second] = REQUESTS as [BatchRequest, BatchRequest];
  const requests = [{ ...first, metadata: { model_hint: 'mistral' } }, { ...second, metadata: { leadId: 'x' } }];
  const options = { priority: 0, pool: 'a&b', strict: false, metadata: { team: 'A=B', run: '7' }, reuse: 'auto' };
  const query = 'pool=a%26b&priority=0&reuse=auto&strict=false&metadata=team%3DA%3DB&metadata=run%3D7';
  const { createBatch } = client(server.url);
  await createBatch('email', requests, { ...options, modelHint: 'llama-70b' });
  await createBatch('email', () => streamOf(requests), { ...options, modelHint: 'llama-70b' });
  const [whole, lines] = server.seen as [Seen, Seen];
  assert.equal(whole.path, `/v1/messages/batches?${query}`);
  assert.deepEqual(JSON.parse(whole.body), { stage: 'email', model_hint: 'llama-70b', requests });
  assert.equal(lines.path, `/v1/messages/batches?stage=email&${query}`);
  const sent = lines.body.trimEnd().split('\n').map((line) => JSON.parse(line));
  assert.deepEqual(sent, [requests[0], { ...second, metadata: { model_hint: 'llama-70b', leadId: 'x' } }]);
});

async function* streamOf(requests: BatchRequest[]): AsyncGenerator<BatchRequest> {
  yield* requests;
}

test('a function is called for each attempt, under one idempotency key', async () => {
  const server = await serve(json(503, {}), hangUp, goldenReply('create'));
  let numCalls = 0;
  await client(server.url).createBatch('sales_intel', () => {
    numCalls++;
    return some();
  });
  assert.equal(numCalls, 3);
  assert.equal(new Set(server.seen.map(({ headers }) => headers['idempotency-key'])).size, 1);
  assert.equal(server.seen[2]!.body, server.seen[0]!.body);
});

test('what can be read only once is sent only once', async () => {
  const server = await serve(hangUp);
  await assert.rejects(client(server.url).createBatch('sales_intel', some()), BatchConnectionError);
  assert.equal(server.seen.length, 1);
});

test('an error of the source is the caller’s own, is not retried, and no batch is made', async () => {
  const reason = new Error('the database went away');
  let numCalls = 0;
  const server = await serve(goldenReply('create'));
  const failing = async function* (): AsyncGenerator<BatchRequest> {
    numCalls++;
    yield REQUESTS[0]!;
    throw reason;
  };
  await assert.rejects(client(server.url).createBatch('sales_intel', failing), reason);
  assert.equal(numCalls, 1);
  assert.ok(server.seen.every(({ body }) => body === '')); // none arrived whole
});

test('an abort ends an upload and lets go of its source', async () => {
  const stop = new AbortController();
  const reason = new Error('shutting down');
  let letGo: () => void = () => undefined;
  const isLetGo = new Promise<void>((resolve) => (letGo = resolve));
  async function* endless(): AsyncGenerator<BatchRequest> {
    try {
      for (let num = 0; ; num++) {
        if (num === 5_000) stop.abort(reason);
        yield REQUESTS[0]!;
      }
    } finally {
      letGo();
    }
  }
  const server = await serve(goldenReply('create'));
  await assert.rejects(client(server.url).createBatch('sales_intel', endless(), { signal: stop.signal }), reason);
  await isLetGo;
});
