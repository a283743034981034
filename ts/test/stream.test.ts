import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';

import { BatchError, createLocalClient, type BatchResult } from '../llmAdapter.js';
import { cut, json, serve, type Reply } from './fakeServer.js';
import { golden, goldenReply, goldenText } from './golden.js';
import { testClock } from './testClock.js';

const ID = 'batch_a1b2c3d4e5f6';
const LINES = 'application/x-ndjson';
const FLAT = new URL('./flatMemory.js', import.meta.url).pathname;

function lines(text: string): Reply {
  return (response) => void response.writeHead(200, { 'content-type': LINES }).end(text);
}

function many(num: number): string {
  return Array.from(
    { length: num },
    (_, at) => `${JSON.stringify({ custom_id: `lead_${at}`, status: 'succeeded' })}\n`,
  ).join('');
}

async function collect(url: string, options = {}): Promise<BatchResult[]> {
  const results: BatchResult[] = [];
  const client = createLocalClient({ baseUrl: url, clock: testClock(), ...options });
  for await (const result of client.streamBatchResults(ID)) results.push(result);
  return results;
}

test('the stream gives what getBatchResults gives', async () => {
  const server = await serve(lines(goldenText('results_lines.jsonl')));
  assert.deepEqual(await collect(server.url), golden('results').response.body.results);
  assert.equal(server.seen[0]!.path, golden('results').request.path);
  assert.equal(server.seen[0]!.headers.accept, LINES);
  assert.equal(server.seen[0]!.headers['batchfile-dialect'], 'stage');
});

test('an interrupted stream resumes after the last result, without a gap or a repetition', async () => {
  const all = many(1_000);
  const server = await serve(
    json(503, {}),
    cut(all.slice(0, 10_003), LINES),
    cut(all.slice(0, 5_000), LINES),
    cut(all.slice(0, 30_000), LINES),
    lines(all),
  );
  const ids = (await collect(server.url)).map((result) => result.custom_id);
  assert.deepEqual(
    ids,
    Array.from({ length: 1_000 }, (_, at) => `lead_${at}`),
  );
  assert.equal(server.seen.length, 5);
});

test('native results stream and resume in the same way, and the native status has everything', async () => {
  const all = many(100);
  const server = await serve(cut(all.slice(0, 1_003), LINES), lines(all), json(200, { id: ID, state: 'ended', total: 1 }));
  const client = createLocalClient({ baseUrl: server.url, clock: testClock() });
  let numResults = 0;
  for await (const result of client.streamNativeResults(ID)) assert.equal(result.custom_id, `lead_${numResults++}`);
  assert.equal(numResults, 100);
  assert.equal((await client.getNativeStatus(ID)).state, 'ended');
  const paths = server.seen.map(({ path }) => path);
  assert.deepEqual(paths, [`/api/batches/${ID}/results`, `/api/batches/${ID}/results`, `/api/batches/${ID}`]);
});

test('a last line without its newline counts if it is whole, and is a cut if it is not', async () => {
  const all = many(3);
  assert.equal((await collect((await serve(lines(all.trimEnd()))).url)).length, 3);
  const server = await serve(lines(all.slice(0, -5)), lines(all));
  assert.equal((await collect(server.url)).length, 3);
});

test('a stream that never gets further gives up', async () => {
  const server = await serve(cut(many(3).slice(0, -5), LINES));
  await assert.rejects(collect(server.url, { maxRetries: 2 }), { name: 'BatchConnectionError' });
  assert.equal(server.seen.length, 3);
});

test('what is not a line of JSON is an error, not a retry', async () => {
  const server = await serve(lines('<html>\n'));
  await assert.rejects(
    collect(server.url),
    (error: unknown) => error instanceof BatchError && /not JSON/.test(error.message),
  );
  assert.equal(server.seen.length, 1);
});

test('a refusal is the first thing a stream says', async () => {
  const server = await serve(goldenReply('results_not_complete'));
  await assert.rejects(collect(server.url), { status: 400, body: { detail: 'Batch not yet complete' } });
});

test('leaving the loop closes the connection, and an abort ends the stream with its reason', async () => {
  let closed: () => void = () => undefined;
  const isClosed = new Promise<void>((resolve) => (closed = resolve));
  const endless: Reply = (response) => {
    response.on('close', closed);
    response.writeHead(200, { 'content-type': LINES });
    response.write(many(10));
  };
  const client = createLocalClient({ baseUrl: (await serve(endless)).url });
  for await (const result of client.streamBatchResults(ID)) {
    assert.equal(result.custom_id, 'lead_0');
    break;
  }
  await isClosed;

  const stop = new AbortController();
  const reason = new Error('shutting down');
  await assert.rejects(async () => {
    for await (const result of client.streamBatchResults(ID, { signal: stop.signal })) {
      if (result.custom_id === 'lead_9') stop.abort(reason);
    }
  }, reason);
});

test('a consumer may take its time, the service may not', async () => {
  const stalls: Reply = (response) => {
    response.writeHead(200, { 'content-type': LINES });
    response.write(many(2));
  };
  const server = await serve(stalls);
  const client = createLocalClient({ baseUrl: server.url, timeoutMs: 2_000, maxRetries: 0 });
  let numTaken = 0;
  await assert.rejects(async () => {
    for await (const _ of client.streamBatchResults(ID)) {
      if (numTaken++ === 0) await new Promise((resolve) => setTimeout(resolve, 2_500)); // longer than the limit
    }
  }, /no data for 2000 ms/);
  assert.deepEqual([numTaken, server.seen.length], [2, 1]);
});

test('200 MB of results and 200 MB of requests pass through a heap of 32 MB', async () => {
  const line = `${JSON.stringify({ custom_id: 'lead_x', status: 'succeeded', text: 'x'.repeat(1_000) })}\n`;
  const block = line.repeat(64);
  const numLines = 200_000;
  const server = await serve((response, seen) => {
    if (seen.method === 'POST') return void json(200, { id: `${seen.body.length}` })(response, seen);
    response.writeHead(200, { 'content-type': LINES });
    let numLeft = numLines / 64;
    const more = (): void => {
      while (numLeft-- > 0) if (!response.write(block)) return void response.once('drain', more);
      response.end();
    };
    more();
  });
  const run = promisify(execFile);
  const { stdout } = await run(process.execPath, ['--max-old-space-size=32', FLAT, server.url, String(numLines)]);
  const told = JSON.parse(stdout) as { numResults: number; numSent: number; maxRssMib: number };
  assert.equal(told.numResults, numLines);
  assert.ok(told.numSent > 190_000_000, `${told.numSent} characters were sent`);
  assert.ok(told.maxRssMib < 250, `${told.maxRssMib} MiB were used`);
});
