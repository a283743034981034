// Sends two requests through the stage `email` of the service at LOCAL_BATCH_URL and prints the answers:
//
//     LOCAL_BATCH_URL=http://127.0.0.1:8000 node node_modules/@batchfile/adapter/examples/firstBatch.mjs

import { createBatch, getBatchResults, streamNativeResults, waitForBatch } from '@batchfile/adapter';

const requests = ['Ada', 'Grace'].map((name) => ({
  custom_id: `lead_${name}_email`,
  params: { messages: [{ role: 'user', content: `Write a greeting to ${name}.` }], max_tokens: 40, logprobs: true },
  metadata: { leadId: name },
}));

const { id } = await createBatch('email', requests);
await waitForBatch(id, 30 * 60 * 1000, {
  onProgress: ({ counts }) => console.log(`${id}: ${counts.total - counts.pending} of ${counts.total}`),
});

const { results } = await getBatchResults(id); // in the order of the requests
for (const { custom_id, message, error } of results) {
  console.log(`${custom_id}: ${message?.content[0].text ?? error?.message}`);
}
for await (const { custom_id, model, stop_reason, logprobs } of streamNativeResults(id)) {
  console.log(`${custom_id}: ${logprobs?.length ?? 0} tokens of ${model}, ended by ${stop_reason}`);
}
