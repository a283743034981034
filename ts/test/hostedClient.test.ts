import assert from 'node:assert/strict';
import { test } from 'node:test';

import Anthropic from '@anthropic-ai/sdk';

import {
  BatchConnectionError,
  createHostedClient,
  type BatchClient,
  type BatchRequest,
  type BatchResult,
  type NativeResult,
  type ResultBlock,
} from '../llmAdapter.js';
import { freeUrl, json, serve, silence, type Reply } from './fakeServer.js';

const ID = 'msgbatch_013Zva2CMHLNnXjNJJKqJ2EF';
const REQUESTS: BatchRequest[] = [
  {
    custom_id: 'lead_abc_subject',
    params: { system: 'Be brief.', messages: [{ role: 'user', content: 'Hi' }], temperature: 0.2, top_p: 0.9 },
    metadata: { leadId: 'abc' },
  },
];

function batch(processing_status: string, counts: Partial<Record<string, number>> = {}): Reply {
  return json(200, {
    id: ID,
    type: 'message_batch',
    processing_status,
    created_at: '2025-01-07T10:00:00Z',
    ended_at: processing_status === 'ended' ? '2025-01-07T12:00:00Z' : null,
    expires_at: '2025-01-08T10:00:00Z',
    archived_at: null,
    cancel_initiated_at: null,
    request_counts: { processing: 0, succeeded: 0, errored: 0, canceled: 0, expired: 0, ...counts },
    results_url: processing_status === 'ended' ? `/v1/messages/batches/${ID}/results` : null,
  });
}

/** Through the SDK itself, so that what it really takes and gives is what is tested. */
function hosted(baseURL: string, sampling?: 'send' | 'drop'): BatchClient<ResultBlock> {
  const { messages } = new Anthropic({ baseURL, apiKey: 'hosted', maxRetries: 0 });
  return createHostedClient({
    batches: messages.batches,
    model: (stage) => `model-of-${stage}`,
    ...(sampling && { sampling }),
  });
}

test('requests go out with a model and a max_tokens, without metadata, and sampling as asked', async () => {
  const server = await serve(batch('in_progress', { processing: 1 }));
  assert.deepEqual(await hosted(server.url).createBatch('subject', REQUESTS), { id: ID });
  await hosted(server.url, 'drop').createBatch('subject', () =>
    (async function* () {
      yield* REQUESTS;
    })(),
  );
  const rest = {
    model: 'model-of-subject',
    max_tokens: 2048,
    system: 'Be brief.',
    messages: REQUESTS[0]!.params.messages,
  };
  const bodies = server.seen.map(({ body }) => JSON.parse(body));
  assert.deepEqual(bodies[0], {
    requests: [{ custom_id: 'lead_abc_subject', params: { ...rest, temperature: 0.2, top_p: 0.9 } }],
  });
  assert.deepEqual(bodies[1], { requests: [{ custom_id: 'lead_abc_subject', params: rest }] });
});

test('a status has the shape of the stage contract', async () => {
  const server = await serve(
    batch('canceling', { processing: 4, succeeded: 3 }),
    batch('ended', { succeeded: 3, errored: 1, canceled: 2, expired: 1 }),
  );
  assert.deepEqual(await hosted(server.url).getBatchStatus(ID), {
    id: ID,
    processing_status: 'processing',
    counts: { total: 7, succeeded: 3, errored: 0, pending: 4 },
    created_at: '2025-01-07T10:00:00Z',
    updated_at: '2025-01-07T10:00:00Z',
  });
  const ended = await hosted(server.url).waitForBatch(ID);
  assert.deepEqual(ended.counts, { total: 7, succeeded: 3, errored: 4, pending: 0 });
  assert.equal(ended.updated_at, '2025-01-07T12:00:00Z');
});

test('results have the shape of the stage contract, whatever became of them', async () => {
  const message = {
    id: 'msg_1',
    type: 'message',
    role: 'assistant',
    model: 'm',
    stop_reason: 'end_turn',
    content: [
      { type: 'thinking', thinking: 'hm', signature: 's' },
      { type: 'text', text: 'Hello', citations: null },
    ],
    usage: { input_tokens: 10, output_tokens: 5, cache_read_input_tokens: 100, cache_creation_input_tokens: null },
  };
  const lines = [
    { custom_id: 'a', result: { type: 'succeeded', message } },
    {
      custom_id: 'b',
      result: {
        type: 'errored',
        error: { type: 'error', error: { type: 'api_error', message: 'no' }, request_id: null },
      },
    },
    { custom_id: 'c', result: { type: 'expired' } },
    { custom_id: 'd', result: { type: 'succeeded', message: { ...message, stop_reason: 'refusal' } } },
  ];
  const reply: Reply = (response, seen) =>
    seen.path.endsWith('/results')
      ? void response.writeHead(200).end(lines.map((line) => `${JSON.stringify(line)}\n`).join(''))
      : batch('ended')(response, seen);
  const server = await serve(reply);
  const errored = { status: 'errored', message: null, usage: null };
  const expected = [
    {
      custom_id: 'a',
      status: 'succeeded',
      message: { content: [{ type: 'text', text: 'Hello' }] },
      usage: { input_tokens: 110, output_tokens: 5 },
      error: null,
    },
    { custom_id: 'b', ...errored, error: { type: 'api_error', message: 'no' } },
    {
      custom_id: 'c',
      ...errored,
      error: { type: 'expired', message: 'The hosted batch expired before this request ran' },
    },
    { custom_id: 'd', ...errored, error: { type: 'refusal', message: 'The model refused to answer: Hello' } },
  ];
  assert.deepEqual((await hosted(server.url).getBatchResults(ID)).results, expected);
  const streamed: BatchResult<ResultBlock>[] = [];
  for await (const result of hosted(server.url).streamBatchResults(ID)) streamed.push(result);
  assert.deepEqual(streamed, expected);
});

test('tool calls are in results, and native results have everything', async () => {
  const call = { type: 'tool_use', id: 'toolu_1', name: 'look_up', input: { name: 'Ada' } };
  const content = [
    { type: 'thinking', thinking: 'hm', signature: 's' },
    { type: 'text', text: 'Wait.', citations: null },
    { ...call, caller: { type: 'direct' } },
  ];
  const usage = { input_tokens: 10, output_tokens: 5, cache_read_input_tokens: 100, cache_creation_input_tokens: 1 };
  const message = { model: 'm', stop_reason: 'tool_use', stop_sequence: null, content, usage };
  const lines = [
    { custom_id: 'a', result: { type: 'succeeded', message } },
    { custom_id: 'b', result: { type: 'canceled' } },
    { custom_id: 'c', result: { type: 'succeeded', message: { ...message, stop_reason: 'refusal' } } },
  ];
  const reply: Reply = (response, seen) =>
    seen.path.endsWith('/results')
      ? void response.writeHead(200).end(lines.map((line) => `${JSON.stringify(line)}\n`).join(''))
      : batch('ended')(response, seen);
  const { url } = await serve(reply);
  const { results } = await hosted(url).getBatchResults(ID);
  assert.deepEqual(results[0]!.message?.content, [{ type: 'text', text: 'Wait.' }, call]);

  const native: NativeResult[] = [];
  for await (const result of hosted(url).streamNativeResults(ID)) native.push(result);
  const answer = {
    custom_id: 'a',
    status: 'succeeded',
    message: { content },
    stop_reason: 'tool_use',
    model: 'm',
    usage: { input_tokens: 111, output_tokens: 5, cached_tokens: 100 },
    error: null,
  };
  assert.deepEqual(native[0], answer);
  assert.deepEqual(native[2], { ...answer, custom_id: 'c', stop_reason: 'refusal' });
  assert.deepEqual([native[1]!.status, native[1]!.message, native[1]!.error?.type], ['canceled', null, 'canceled']);
});

test('results before the end are refused as the contract says', async () => {
  const server = await serve(batch('in_progress'));
  await assert.rejects(hosted(server.url).getBatchResults(ID), {
    status: 400,
    body: { detail: 'Batch not yet complete' },
  });
});

test('the errors of the SDK become ours, so that a wait survives the hosted API as well', async () => {
  const refused = json(
    404,
    { type: 'error', error: { type: 'not_found_error', message: 'no such batch' } },
    { 'request-id': 'req_9' },
  );
  const server = await serve(refused, json(529, {}), batch('ended'));
  await assert.rejects(hosted(server.url).getBatchStatus(ID), {
    name: 'BatchHttpError',
    status: 404,
    requestId: 'req_9',
  });
  await assert.rejects(hosted(server.url).getBatchStatus(ID), { name: 'BatchHttpError', status: 529 });
  await assert.rejects(hosted(await freeUrl()).getBatchStatus(ID), BatchConnectionError);
});

test('an abort ends a call with its own reason', async () => {
  const stop = new AbortController();
  const reason = new Error('shutting down');
  const server = await serve((response, seen) => {
    stop.abort(reason);
    return silence(response, seen);
  });
  await assert.rejects(hosted(server.url).getBatchStatus(ID, { signal: stop.signal }), reason);
  await server.stop();
});
