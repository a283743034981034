/** Run by tests/service/test_node_adapter.py: makes a batch and waits, telling each status as a line. */

import { createBatch, getBatchResults, waitForBatch, type BatchRequest } from '../../llmAdapter.js';

const requests: BatchRequest[] = Array.from({ length: 20 }, (_, lead) => ({
  custom_id: `lead_${lead}_subject`,
  params: { messages: [{ role: 'user', content: 'Hi' }], max_tokens: 8 },
}));

const { id } = await createBatch('subject', requests);
await waitForBatch(id, 120_000, { onProgress: (status) => console.log(JSON.stringify(status)) });
console.log(JSON.stringify(await getBatchResults(id)));
