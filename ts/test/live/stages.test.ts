/**
 * The adapter against a real service at LOCAL_BATCH_URL, with both pools at work. Started by tests/service/test_node_adapter.py
 * and, with fewer leads and real models, by tests/e2e/test_service_vllm.py.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  BatchHttpError,
  createBatch,
  createLocalClient,
  getBatchResults,
  getBatchStatus,
  streamBatchResults,
  streamNativeResults,
  waitForBatch,
  type BatchRequest,
  type BatchResult,
  type Stage,
} from '../../llmAdapter.js';
import { golden } from '../golden.js';

const STAGES: Stage[] = ['sales_intel', 'subject', 'email', 'polish'];
const LEADS = Number(process.env['LIVE_LEADS'] ?? 100);
const WAIT_MS = 300_000;

assert.ok(process.env['LOCAL_BATCH_URL'], 'set LOCAL_BATCH_URL to a running service with runners for both pools');

function requests(stage: Stage, num: number): BatchRequest[] {
  return Array.from({ length: num }, (_, lead) => ({
    custom_id: `lead_${lead}_${stage}`,
    params: {
      system: 'You write to leads.',
      messages: [{ role: 'user', content: `Lead ${lead} é ☕ \u2028` }],
      max_tokens: 8,
    },
    metadata: { leadId: String(lead), accountId: 'acct_xyz' },
  }));
}

const idsOf = (list: readonly { custom_id: string }[]): string[] => list.map(({ custom_id }) => custom_id);

/** What the contract leaves out. */
async function modelsOf(id: string): Promise<(string | null)[]> {
  const models: (string | null)[] = [];
  for await (const result of streamNativeResults(id)) models.push(result.model);
  return models;
}

test('leads go through all four stages, every custom_id comes back, in order, from the stage’s own pool', async () => {
  const models = new Map<Stage, Set<string | null>>();
  for (const stage of STAGES) {
    const sent = requests(stage, LEADS);
    const { id } = await createBatch(stage, sent);
    assert.match(id, /^batch_[0-9a-f]{12}$/);
    const seen: number[] = [];
    const status = await waitForBatch(id, WAIT_MS, { onProgress: ({ counts }) => seen.push(counts.pending) });
    assert.deepEqual(status.counts, { total: LEADS, succeeded: LEADS, errored: 0, pending: 0 });
    assert.deepEqual(
      seen,
      [...seen].sort((one, other) => other - one),
      'counts never go back',
    );
    const { results } = await getBatchResults(id);
    assert.deepEqual(idsOf(results), idsOf(sent));
    for (const result of results) {
      assert.deepEqual(Object.keys(result), ['custom_id', 'status', 'message', 'usage', 'error']);
      assert.equal(result.status, 'succeeded');
      assert.ok(result.usage.input_tokens > 0 && result.message.content[0]!.type === 'text');
    }
    models.set(stage, new Set(await modelsOf(id)));
  }
  for (const found of models.values()) assert.equal(found.size, 1);
  assert.deepEqual(models.get('email'), models.get('subject'));
  assert.deepEqual(models.get('polish'), models.get('sales_intel'));
  assert.notDeepEqual(models.get('email'), models.get('polish'));
});

test('model_hint mixes both pools in one batch, and the results are still in input order', async () => {
  const sent = requests('subject', LEADS);
  for (const [num, request] of sent.entries()) {
    if (num % 3 === 0) request.metadata = { ...request.metadata, model_hint: 'llama-70b' };
  }
  const { id } = await createBatch('subject', sent);
  await waitForBatch(id, WAIT_MS);
  assert.deepEqual(idsOf((await getBatchResults(id)).results), idsOf(sent));
  const models = await modelsOf(id);
  assert.equal(new Set(models).size, 2);
  for (const [num, model] of models.entries()) assert.equal(model, models[num % 3 === 0 ? 0 : 1]);
});

test('a request that cannot run is an errored result, and the stream gives what the document gives', async () => {
  const [good, bad]: BatchRequest[] = golden('create').request.body.requests;
  good!.params.max_tokens = 8; // a small model has no room for the 2,048 there
  const { id } = await createBatch('sales_intel', [good!, bad!]);
  const status = await waitForBatch(id, WAIT_MS);
  assert.deepEqual(status.counts, { total: 2, succeeded: 1, errored: 1, pending: 0 });
  const { results } = await getBatchResults(id);
  assert.equal(results[1]!.status, 'errored');
  assert.equal(results[1]!.error?.type, 'invalid_request_error');
  const streamed: BatchResult[] = [];
  for await (const result of streamBatchResults(id)) streamed.push(result);
  assert.deepEqual(streamed, results);
});

test('requests stream up and results stream down', async () => {
  const sent = requests('email', 50 * LEADS);
  const { id } = await createBatch('email', () =>
    (async function* () {
      yield* sent;
    })(),
  );
  await waitForBatch(id, WAIT_MS);
  const ids: string[] = [];
  for await (const result of streamBatchResults(id)) ids.push(result.custom_id);
  assert.deepEqual(ids, idsOf(sent));
});

test('one idempotency key is one batch, and with other requests it is refused', async () => {
  const idempotencyKey = `node-${process.pid}-${Date.now()}`;
  const first = await createBatch('subject', requests('subject', 3), { idempotencyKey });
  assert.deepEqual(await createBatch('subject', requests('subject', 3), { idempotencyKey }), first);
  await assert.rejects(createBatch('subject', requests('subject', 4), { idempotencyKey }), { status: 422 });
  assert.notDeepEqual(await createBatch('subject', requests('subject', 3)), first);
});

test('refusals say what is wrong, with the id that the service’s log has', async () => {
  const twice = [...requests('subject', 2), ...requests('subject', 1)];
  await assert.rejects(createBatch('subject', twice), (error: unknown) => {
    assert.ok(error instanceof BatchHttpError);
    assert.equal(error.status, 400);
    assert.match(error.message, /requests\[2\]\.custom_id/);
    assert.ok(error.requestId);
    return true;
  });
  await assert.rejects(createBatch('no_such_stage', requests('subject', 1)), { status: 400 });
  await assert.rejects(getBatchStatus('batch_000000000000'), { status: 404, body: { detail: 'Batch not found' } });
  await assert.rejects(getBatchResults('batch_000000000000'), { status: 404, body: { detail: 'Batch not found' } });
});

test(
  'a wrong key is told so',
  { skip: !process.env['LOCAL_BATCH_API_KEY'] && 'the service asks for no key' },
  async () => {
    const stranger = createLocalClient({ apiKey: 'not-a-key' });
    await assert.rejects(stranger.getBatchStatus('batch_000000000000'), { status: 401 });
    await assert.rejects(stranger.createBatch('subject', requests('subject', 1)), { status: 401 });
  },
);
