/**
 * An `openai` client against a service with a real model behind the pool `mistral`: a conversation and a raw prompt.
 * `node onAModel.js current|old`, with LOCAL_BATCH_URL. What a small model says is not checked.
 */

import assert from "node:assert/strict";

import type OpenAI from "openai-7";

const WAIT_MS = 300_000;
const version = process.argv[2] === "old" ? "old" : "current";
const library = (await (version === "old" ? import("openai") : import("openai-7"))) as typeof import("openai-7");
const { default: Client, toFile } = library;
const client = new Client({ baseURL: `${process.env.LOCAL_BATCH_URL}/v1`, apiKey: "none" });

async function answer<T>(endpoint: OpenAI.BatchCreateParams["endpoint"], asked: object): Promise<T> {
  const body = { model: "mistral", max_tokens: 12, ...asked };
  const text = `${JSON.stringify({ custom_id: "a", method: "POST", url: endpoint, body })}\n`;
  const file = await client.files.create({ file: await toFile(Buffer.from(text), "in.jsonl"), purpose: "batch" });
  const made = await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
  for (const deadline = Date.now() + WAIT_MS; ; ) {
    const batch = await client.batches.retrieve(made.id);
    if (batch.status === "completed") {
      return JSON.parse(await (await client.files.content(batch.output_file_id ?? "")).text()).response.body;
    }
    assert.ok(Date.now() < deadline, `${batch.id} is still ${batch.status}`);
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

const messages = [{ role: "user", content: "Name a city." }];
const chat = await answer<OpenAI.ChatCompletion>("/v1/chat/completions", { messages });
assert.ok(chat.choices[0]?.message.content, JSON.stringify(chat));
const completion = await answer<OpenAI.Completion>("/v1/completions", { prompt: "Paris, Rome," });
assert.ok(completion.choices[0]?.text, JSON.stringify(completion));
assert.ok((completion.usage?.completion_tokens ?? 0) > 0);
console.log(`openai ${version} in Node`);
