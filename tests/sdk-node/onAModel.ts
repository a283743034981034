/**
 * An `@anthropic-ai/sdk` client against a service with a real model behind the pool `mistral`.
 * `node onAModel.js current|old`, with LOCAL_BATCH_URL. What a small model says is not checked.
 */

import assert from "node:assert/strict";

import Current from "@anthropic-ai/sdk";
import Old from "anthropic-sdk-0";

const WAIT_MS = 300_000;
const name = process.argv[2] ?? "current";
const Anthropic = (name === "old" ? Old : Current) as typeof Current; // what is used here has the same shape
const { batches } = new Anthropic({ baseURL: process.env.LOCAL_BATCH_URL, apiKey: "none" }).messages;

const params = { model: "mistral", max_tokens: 12, messages: [{ role: "user" as const, content: "Name a city." }] };
const made = await batches.create({
  requests: [
    { custom_id: "plain", params },
    { custom_id: "refused", params: { ...params, max_tokens: 0 } },
  ],
});
for (const deadline = Date.now() + WAIT_MS; (await batches.retrieve(made.id)).processing_status !== "ended"; ) {
  assert.ok(Date.now() < deadline, `${made.id} did not end`);
  await new Promise((resolve) => setTimeout(resolve, 500));
}
const found: Record<string, Current.Messages.MessageBatchResult> = {};
for await (const line of await batches.results(made.id)) found[line.custom_id] = line.result;
const { plain, refused } = found;
assert.ok(plain?.type === "succeeded" && plain.message.content[0]?.type === "text", JSON.stringify(plain));
assert.ok(plain.message.usage.output_tokens > 0);
assert.ok(refused?.type === "errored" && refused.error.error.type === "invalid_request_error", JSON.stringify(refused));
console.log(`anthropic ${name} in Node`);
