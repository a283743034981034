/** Run by stream.test.ts with a small heap: streams results and requests that are far larger. */

import { createLocalClient, type BatchRequest } from '../llmAdapter.js';

const [, , baseUrl = '', count = '0'] = process.argv;
const client = createLocalClient({ baseUrl });

let numResults = 0;
for await (const _ of client.streamBatchResults('batch_a1b2c3d4e5f6')) numResults++;

async function* requests(): AsyncGenerator<BatchRequest> {
  const messages = [{ role: 'user' as const, content: 'x'.repeat(950) }];
  for (let num = 0; num < Number(count); num++) yield { custom_id: `lead_${num}_subject`, params: { messages } };
}
const { id } = await client.createBatch('subject', requests);

const maxRssMib = Math.round(process.resourceUsage().maxRSS / 1024);
console.log(JSON.stringify({ numResults, numSent: Number(id), maxRssMib }));
