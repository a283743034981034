import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  createBatchRouter,
  isInCanary,
  leadIdOf,
  readSwitches,
  type BatchClient,
  type BatchRequest,
} from '../llmAdapter.js';

const LEADS = Array.from({ length: 10_000 }, (_, num) => `lead${num}`);

test('the share of leads is the canary share, and a larger share only adds leads', () => {
  let before = new Set<string>();
  for (const percent of [0, 0.5, 1, 10, 50, 99, 100]) {
    const now = new Set(LEADS.filter((lead) => isInCanary(lead, percent)));
    assert.ok(Math.abs(now.size / 100 - percent) < 1.5, `${percent} % took ${now.size} of 10000`);
    for (const lead of before) assert.ok(now.has(lead));
    before = now;
  }
  assert.equal(before.size, 10_000);
});

test('a lead keeps its side for ever', () => {
  assert.deepEqual(
    LEADS.slice(0, 12).filter((lead) => isInCanary(lead, 50)),
    ['lead3', 'lead5', 'lead6', 'lead7', 'lead8', 'lead11'],
  );
});

test('the lead id is that of the metadata, else of the custom_id, else the custom_id', () => {
  const params = { messages: [] };
  assert.equal(leadIdOf({ custom_id: 'x', params, metadata: { leadId: 'abc' } }, 'subject'), 'abc');
  assert.equal(leadIdOf({ custom_id: 'lead_a_b_sales_intel', params }, 'sales_intel'), 'a_b');
  assert.equal(leadIdOf({ custom_id: 'lead_abc_subject', params }, 'email'), 'lead_abc_subject');
  assert.equal(leadIdOf({ custom_id: 'lead__subject', params }, 'subject'), 'lead__subject');
});

test('a lead has the same id and side whether its id is a number or a string', () => {
  const request = (leadId: unknown): BatchRequest =>
    ({ custom_id: 'x', params: { messages: [] }, metadata: { leadId } }) as BatchRequest;
  for (const [given, id] of [[12345, '12345'], ['12345', '12345'], [0, '0'], ['', 'x'], [null, 'x'], [{}, 'x']]) {
    assert.equal(leadIdOf(request(given), 'subject'), id);
  }
  const client = {} as BatchClient;
  const router = createBatchRouter({
    local: client,
    hosted: client,
    switches: () => ({ useLocal: true, canaryPercent: 50 }),
  });
  for (let lead = 0; lead < 100; lead++) {
    const sides = router.split('subject', [request(lead), request(String(lead))]);
    assert.equal(sides.local.length % 2, 0);
  }
});

test('the switch is off where unset, takes the usual words, and refuses others by name', () => {
  assert.deepEqual(readSwitches({}), { useLocal: false, canaryPercent: 100 });
  assert.deepEqual(readSwitches({ USE_LOCAL_LLM: ' TRUE ', LOCAL_LLM_CANARY: '10' }), {
    useLocal: true,
    canaryPercent: 10,
  });
  assert.deepEqual(readSwitches({ USE_LOCAL_LLM: '0', LOCAL_LLM_CANARY: '2.5 %' }), {
    useLocal: false,
    canaryPercent: 2.5,
  });
  assert.throws(() => readSwitches({ USE_LOCAL_LLM: 'maybe' }), /USE_LOCAL_LLM: "maybe" is not valid; use true or false/);
  for (const share of ['ten', '-1', '101', '%']) {
    assert.throws(
      () => readSwitches({ USE_LOCAL_LLM: '1', LOCAL_LLM_CANARY: share }),
      /LOCAL_LLM_CANARY: .* from 0 to 100/,
    );
  }
});
