import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  BatchConnectionError,
  BatchError,
  BatchHttpError,
  createBatch,
  createLocalClient,
  type BatchRequest,
  type LocalClientOptions,
} from '../llmAdapter.js';
import { cut, freeUrl, hangUp, json, serve, silence, type Reply } from './fakeServer.js';
import { golden, goldenReply } from './golden.js';
import { testClock, type TestClock } from './testClock.js';

const ID = 'batch_a1b2c3d4e5f6';
const REQUESTS: BatchRequest[] = golden('create').request.body.requests;

function client(
  baseUrl: string,
  options: LocalClientOptions = {},
): ReturnType<typeof createLocalClient> & { clock: TestClock } {
  const clock = testClock();
  return { ...createLocalClient({ baseUrl, clock, random: () => 0, ...options }), clock };
}

test('the four calls are the golden exchanges', async () => {
  const server = await serve(
    goldenReply('create'),
    goldenReply('status_processing'),
    goldenReply('status_ended'),
    goldenReply('results'),
  );
  const { createBatch, getBatchStatus, waitForBatch, getBatchResults } = client(`${server.url}/`, { apiKey: 'secret' });
  assert.deepEqual(await createBatch('sales_intel', REQUESTS), { id: ID });
  assert.deepEqual(await getBatchStatus(ID), golden('status_processing').response.body);
  assert.deepEqual(await waitForBatch(ID), golden('status_ended').response.body);
  assert.deepEqual(await getBatchResults(ID), golden('results').response.body);

  const names = ['create', 'status_processing', 'status_ended', 'results'];
  for (const [num, seen] of server.seen.entries()) {
    const { request } = golden(names[num]!);
    assert.deepEqual([seen.method, seen.path], [request.method, request.path]);
    assert.equal(seen.headers.authorization, 'Bearer secret');
    assert.equal(seen.headers['batchfile-dialect'], 'stage');
    if (request.body) assert.deepEqual(JSON.parse(seen.body), request.body);
  }
});

test('a create is tried again with the same body and the same idempotency key, and another call has another key', async () => {
  const server = await serve(json(503, {}), hangUp, json(500, {}), goldenReply('create'));
  const { createBatch, clock } = client(server.url);
  assert.deepEqual(await createBatch('sales_intel', REQUESTS), { id: ID });
  assert.equal(server.seen.length, 4);
  assert.equal(new Set(server.seen.map(({ headers }) => headers['idempotency-key'])).size, 1);
  assert.match(String(server.seen[0]!.headers['idempotency-key']), /^[0-9a-f-]{36}$/);
  for (const num of [2, 3]) assert.equal(server.seen[num]!.body, server.seen[0]!.body);
  assert.deepEqual(clock.sleeps, [250, 500, 1000]);

  await createBatch('sales_intel', REQUESTS);
  assert.notEqual(server.seen[4]!.headers['idempotency-key'], server.seen[0]!.headers['idempotency-key']);
  await createBatch('sales_intel', REQUESTS, { idempotencyKey: 'mine' });
  assert.equal(server.seen[5]!.headers['idempotency-key'], 'mine');
});

test('Retry-After is honored as seconds and as a date by the clock of the server', async () => {
  const date = 'Sun, 06 Nov 1994 08:49:07 GMT';
  const late = json(429, {}, { date: 'Sun, 06 Nov 1994 08:49:00 GMT', 'retry-after': date });
  const server = await serve(json(503, {}, { 'retry-after': '3' }), late, goldenReply('status_ended'));
  const { getBatchStatus, clock } = client(server.url);
  await getBatchStatus(ID);
  assert.deepEqual(clock.sleeps, [3_000, 7_000]);
});

test('a service that asks for an hour is left to the caller', async () => {
  const server = await serve(json(429, { detail: 'too much' }, { 'retry-after': '3600' }));
  await assert.rejects(client(server.url).getBatchStatus(ID), { status: 429, retryAfterMs: 3_600_000 });
  assert.equal(server.seen.length, 1);
});

test('an answer that was cut off is asked for again', async () => {
  const server = await serve(cut('{"results":[{"custom_id":"lead_abc'), goldenReply('results'));
  assert.deepEqual(await client(server.url).getBatchResults(ID), golden('results').response.body);
});

test('after the last attempt the error says what came, and no more attempts than asked for are made', async () => {
  const server = await serve(json(503, { detail: 'The store does not answer now.' }));
  await assert.rejects(client(server.url, { maxRetries: 2 }).getBatchStatus(ID), { status: 503 });
  assert.equal(server.seen.length, 3);
  await assert.rejects(client(server.url).getBatchStatus(ID, { maxRetries: 0 }), { status: 503 });
  assert.equal(server.seen.length, 4);
});

test('an error has the status, the body and the request id, and says what the service said', async () => {
  const detail = 'requests[3].custom_id: is used twice';
  const server = await serve(json(400, { detail }, { 'x-request-id': 'req_7' }));
  await assert.rejects(client(server.url).createBatch('subject', REQUESTS), (error: unknown) => {
    assert.ok(error instanceof BatchHttpError);
    assert.deepEqual(
      [error.name, error.status, error.body, error.requestId],
      ['BatchHttpError', 400, { detail }, 'req_7'],
    );
    assert.equal(error.message, `POST /v1/messages/batches failed with status 400: ${detail} (request id req_7)`);
    return true;
  });
  assert.equal(server.seen.length, 1);
});

test('the contract’s refusals arrive as they are', async () => {
  const server = await serve(
    goldenReply('results_not_complete'),
    goldenReply('not_found'),
    goldenReply('unknown_stage'),
  );
  const { getBatchResults, getBatchStatus, createBatch } = client(server.url);
  await assert.rejects(getBatchResults(ID), { status: 400, body: { detail: 'Batch not yet complete' } });
  await assert.rejects(getBatchStatus('batch_000000000000'), { status: 404, body: { detail: 'Batch not found' } });
  await assert.rejects(createBatch('no_such_stage', REQUESTS), { status: 400 });
});

test('a page of a proxy is an error with its text, and a good page that is not ours is said so', async () => {
  const page: Reply = (response) => void response.writeHead(404, { 'content-type': 'text/html' }).end('<h1>gone</h1>');
  const server = await serve(page, json(200, { hello: 'world' }));
  await assert.rejects(client(server.url).getBatchStatus(ID), { status: 404, body: '<h1>gone</h1>', requestId: null });
  await assert.rejects(
    client(server.url).getBatchStatus(ID),
    /no "processing_status", "counts". Check LOCAL_BATCH_URL/,
  );
});

test('an attempt without an answer ends after its time and is tried again', async () => {
  const server = await serve(silence, goldenReply('status_ended'));
  const status = await client(server.url).getBatchStatus(ID, { timeoutMs: 2_000 });
  assert.equal(status.processing_status, 'ended');
  assert.equal(server.seen.length, 2);
  await assert.rejects(
    client((await serve(silence)).url, { maxRetries: 0, timeoutMs: 50 }).getBatchStatus(ID),
    (error: unknown) => {
      assert.ok(error instanceof BatchConnectionError);
      assert.match(error.message, /no data for 50 ms/);
      return true;
    },
  );
});

test('a service that is not there is a connection error that names the address', async () => {
  const url = await freeUrl();
  await assert.rejects(client(url, { maxRetries: 1 }).getBatchStatus(ID), (error: unknown) => {
    assert.ok(error instanceof BatchConnectionError);
    assert.match(error.message, /ECONNREFUSED/);
    assert.ok(error.message.includes(url));
    return true;
  });
});

test('an abort rejects with its own reason: before, during a call and between attempts', async () => {
  const reason = new Error('shutting down');
  const before = AbortSignal.abort(reason);
  const server = await serve(silence);
  await assert.rejects(client(server.url).getBatchStatus(ID, { signal: before }), reason);
  assert.equal(server.seen.length, 0);

  const during = new AbortController();
  const noticed = await serve(() => during.abort(reason));
  await assert.rejects(client(noticed.url).getBatchStatus(ID, { signal: during.signal }), reason);

  const between = new AbortController();
  const failing = await serve(json(503, {}));
  const clock = testClock(() => between.abort(reason));
  await assert.rejects(client(failing.url, { clock }).getBatchStatus(ID, { signal: between.signal }), reason);
  assert.equal(failing.seen.length, 1);
});

test('waitForBatch survives a service that stops and comes back', async () => {
  const away = await freeUrl();
  const back = await serve(goldenReply('status_ended'));
  let numCalls = 0;
  const fetchBoth: typeof fetch = (input, init) => {
    numCalls++;
    const url = numCalls <= 5 ? String(input) : String(input).replace(away, back.url);
    return fetch(url, init);
  };
  const { waitForBatch } = client(away, { fetch: fetchBoth });
  assert.equal((await waitForBatch(ID)).processing_status, 'ended');
  assert.equal(numCalls, 6);
});

test('ids cannot leave their place in the path', async () => {
  const server = await serve(goldenReply('not_found'));
  await assert.rejects(client(server.url).getBatchStatus('../../api/batches?x=1#'), { status: 404 });
  assert.equal(server.seen[0]!.path, '/v1/messages/batches/..%2F..%2Fapi%2Fbatches%3Fx%3D1%23');
});

test('the plain functions read LOCAL_BATCH_URL and LOCAL_BATCH_API_KEY at each call', async () => {
  delete process.env['LOCAL_BATCH_URL'];
  await assert.rejects(createBatch('subject', REQUESTS), (error: unknown) => {
    assert.ok(error instanceof BatchError);
    assert.match(error.message, /LOCAL_BATCH_URL is not set. Set it to the URL/);
    return true;
  });
  for (const url of ['localhost:8000', 'ftp://x', 'http://user:key@host']) {
    process.env['LOCAL_BATCH_URL'] = url;
    await assert.rejects(createBatch('subject', REQUESTS), /LOCAL_BATCH_URL is/);
  }
  const server = await serve(goldenReply('create'));
  process.env['LOCAL_BATCH_URL'] = server.url;
  process.env['LOCAL_BATCH_API_KEY'] = 'from the environment';
  try {
    assert.deepEqual(await createBatch('subject', REQUESTS), { id: ID });
    assert.equal(server.seen[0]!.headers.authorization, 'Bearer from the environment');
  } finally {
    delete process.env['LOCAL_BATCH_URL'];
    delete process.env['LOCAL_BATCH_API_KEY'];
  }
});
