// Sends leads through the stages of a running service and checks what comes back: every custom_id, in order, from the
// right model. Run it with `just demo-service`, or against any service:
//
//     LOCAL_BATCH_URL=http://127.0.0.1:8000 node examples/node/leads.mjs [--leads N] [--wait-minutes M]
//
// It needs Node 18 or newer and the built adapter (`just adapter`).

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

import { createBatch, getBatchResults, streamNativeResults, waitForBatch } from '../../ts/dist/llmAdapter.js';

const POLISH_EVERY = 5; // of the emails
const MIXED = 20; // requests of the batch for both pools

const { values: options } = parseArgs({
  options: { leads: { type: 'string', default: '100' }, 'wait-minutes': { type: 'string', default: '30' } },
});
const maxWaitMs = Number(options['wait-minutes']) * 60_000;
const url = process.env.LOCAL_BATCH_URL ?? '';
const headers = process.env.LOCAL_BATCH_API_KEY ? { authorization: `Bearer ${process.env.LOCAL_BATCH_API_KEY}` } : {};

/** The example's leads, repeated under other ids until there are `count` for each stage. */
function readLeads(count) {
  const lines = readFileSync(new URL('../leads.jsonl', import.meta.url), 'utf8').trim().split('\n');
  const byStage = {};
  for (const line of lines) {
    const request = JSON.parse(line);
    const stage = request.custom_id.split('_').slice(2).join('_');
    (byStage[stage] ??= []).push(request);
  }
  const repeat = (stage, requests) =>
    Array.from({ length: count }, (_, n) => {
      const { params, metadata } = requests[n % requests.length];
      const round = Math.floor(n / requests.length);
      const leadId = round ? `${metadata.leadId}x${round}` : metadata.leadId;
      return { custom_id: `lead_${leadId}_${stage}`, params, metadata: { ...metadata, leadId } };
    });
  return Object.fromEntries(Object.entries(byStage).map(([stage, requests]) => [stage, repeat(stage, requests)]));
}

/** pool -> the model that its runners serve. */
async function readModels() {
  const answer = await fetch(`${url}/api/runners`, { headers });
  assert.equal(answer.status, 200, `/api/runners: ${answer.status}`);
  const runners = await answer.json();
  return Object.fromEntries(runners.map((runner) => [runner.pool, runner.model]));
}

/** One batch from its requests to its results. Every custom_id must come back, in order, from its pool's model. */
async function runBatch(name, stage, requests, models) {
  const startedMs = Date.now();
  const { id } = await createBatch(stage, requests);
  let lastFinished = -1;
  const { counts } = await waitForBatch(id, maxWaitMs, {
    onProgress: ({ counts: { total, pending } }) => {
      if (total - pending !== lastFinished) console.log(`  ${name}: ${(lastFinished = total - pending)} of ${total}`);
    },
  });
  const { results } = await getBatchResults(id);
  assert.deepEqual(
    results.map((result) => result.custom_id),
    requests.map((request) => request.custom_id),
  );
  assert.equal(counts.total, requests.length);
  assert.equal(counts.succeeded, requests.length, `${counts.errored} requests of ${name} did not succeed`);
  const used = [];
  for await (const { model } of streamNativeResults(id)) used.push(model);
  requests.forEach((request, n) => assert.equal(used[n], models[request.metadata.model_hint], name));
  const tokens = results.reduce((sum, result) => sum + result.usage.output_tokens, 0);
  const seconds = (Date.now() - startedMs) / 1000;
  return { name, id, results, requests: results.length, tokens, used: [...new Set(used)].join(' and '), seconds };
}

/** The second pass: every fifth email goes to the large model. */
function polishRequests(emails, leads) {
  const chosen = emails.filter((_, n) => n % POLISH_EVERY === 0);
  return chosen.map((email, n) => {
    const leadId = email.custom_id.split('_')[1];
    const { params, metadata } = leads.polish[n];
    const draft = `Draft to polish:\n\n${email.message.content[0].text}`;
    return {
      custom_id: `lead_${leadId}_polish`,
      params: { ...params, messages: [{ role: 'user', content: draft }] },
      metadata: { ...metadata, leadId },
    };
  });
}

const leads = readLeads(Number(options.leads));
const models = await readModels();
assert.ok(models.mistral && models['llama-70b'], `both pools must be up: ${JSON.stringify(models)}`);
assert.notEqual(models.mistral, models['llama-70b']);

const firstPass = await Promise.all(
  ['sales_intel', 'subject', 'email'].map((stage) => runBatch(stage, stage, leads[stage], models)),
);
const emails = firstPass[2].results;
const polish = await runBatch('polish', 'polish', polishRequests(emails, leads), models);
const mixedRequests = leads.email.slice(0, MIXED).map((request, n) => ({
  ...request,
  metadata: { ...request.metadata, model_hint: n % 2 ? 'llama-70b' : 'mistral' },
}));
const mixed = await runBatch('mixed', 'email', mixedRequests, models);

const runs = [...firstPass, polish, mixed];
console.log('');
for (const { name, requests, tokens, seconds, used, id } of runs) {
  const columns = [name.padEnd(12), `${requests} requests`.padStart(13), `${tokens} tokens`.padStart(13)];
  console.log(`${columns.join('')}${seconds.toFixed(1).padStart(8)} s   ${used}   ${id}`);
}
console.log(`\nA subject line of ${models.mistral}: ${firstPass[1].results[0].message.content[0].text.trim()}`);
const total = runs.reduce((sum, run) => sum + run.requests, 0);
console.log(`${total} requests, every custom_id came back in order and from the right model.`);
