/**
 * What an `@anthropic-ai/sdk` client does with batches, against a real service. Compiled against the types of both
 * majors. `node anthropicWalk.js current|old`, with WALK_URL, WALK_KEY and WALK_PAGES_KEY as in the Python walk.
 */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

import Current from "@anthropic-ai/sdk";
import Old from "anthropic-sdk-0";

type Batch = Current.Messages.MessageBatch;
type Keys<T> = Record<keyof T, true>;

const NUM_PAGED = 250;
const WAIT_MS = 60_000;
const { WALK_URL: url = "", WALK_KEY: key = "", WALK_PAGES_KEY: pagesKey = "" } = process.env;
const isOld = process.argv[2] === "old";
// The walk is typed by the current client; what it uses of the old one has the same shape, see below.
const Anthropic = (isOld ? Old : Current) as typeof Current;
const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const batches = client.messages.batches;

// Every key that either client's types declare. A key that a client adds fails to compile here.
const BATCH: Keys<Batch> & Keys<Old.Messages.MessageBatch> = {
  id: true,
  archived_at: true,
  cancel_initiated_at: true,
  created_at: true,
  ended_at: true,
  expires_at: true,
  processing_status: true,
  request_counts: true,
  results_url: true,
  type: true,
};
const COUNTS: Keys<Batch["request_counts"]> = {
  canceled: true,
  errored: true,
  expired: true,
  processing: true,
  succeeded: true,
};
const MESSAGE: Keys<Current.Message> & Keys<Old.Message> = {
  id: true,
  container: true,
  content: true,
  diagnostics: true,
  model: true,
  role: true,
  stop_details: true,
  stop_reason: true,
  stop_sequence: true,
  type: true,
  usage: true,
};
const USAGE: Keys<Current.Usage> & Keys<Old.Usage> = {
  cache_creation: true,
  cache_creation_input_tokens: true,
  cache_read_input_tokens: true,
  inference_geo: true,
  input_tokens: true,
  output_tokens: true,
  output_tokens_details: true,
  server_tool_use: true,
  service_tier: true,
  speed: true,
};
const BETA_MESSAGE: Keys<Current.Beta.BetaMessage> & Keys<Old.Beta.BetaMessage> = {
  ...MESSAGE,
  context_management: true,
  input_transformations: true,
};
const BETA_USAGE: Keys<Current.Beta.BetaUsage> & Keys<Old.Beta.BetaUsage> = {
  ...USAGE,
  fallback_credit: true,
  iterations: true,
};
const TEXT: Keys<Current.TextBlock> & Keys<Old.TextBlock> = { citations: true, text: true, type: true };
const THINKING: Keys<Current.ThinkingBlock> & Keys<Old.ThinkingBlock> = { signature: true, thinking: true, type: true };
type ToolUse = Omit<Current.ToolUseBlock, "toolset_name">; // which is optional
const TOOL_USE: Keys<ToolUse> & Keys<Omit<Old.ToolUseBlock, "toolset_name">> = {
  caller: true,
  id: true,
  input: true,
  name: true,
  type: true,
};
const ERROR: Keys<Current.ErrorResponse> & Keys<Old.ErrorResponse> = { error: true, request_id: true, type: true };
const MODEL: Keys<Current.ModelInfo> & Keys<Old.ModelInfo> = {
  id: true,
  capabilities: true,
  created_at: true,
  deprecated_at: true,
  display_name: true,
  lifecycle: true,
  line: true,
  max_input_tokens: true,
  max_tokens: true,
  retires_at: true,
  type: true,
};

function complete<T extends object>(value: T, keys: Keys<T>): T {
  for (const name of Object.keys(keys)) assert.ok(name in value, `${name} is missing in ${JSON.stringify(value)}`);
  return value;
}

function whole(batch: Batch): Batch {
  complete(batch, BATCH);
  complete(batch.request_counts, COUNTS);
  for (const time of [batch.created_at, batch.expires_at]) assert.ok(!Number.isNaN(Date.parse(time)), time);
  return batch;
}

function wholeResult(line: Current.Messages.MessageBatchIndividualResponse): void {
  const { result } = line;
  if (result.type === "succeeded") {
    complete(result.message, MESSAGE);
    complete(result.message.usage, USAGE);
    complete<object>(result.message, BETA_MESSAGE); // the beta's results are the same ones
    complete<object>(result.message.usage, BETA_USAGE);
    for (const block of result.message.content) {
      if (block.type === "text") complete(block, TEXT);
      else if (block.type === "thinking") complete(block, THINKING);
      else if (block.type === "tool_use") complete<ToolUse>(block, TOOL_USE);
      else assert.fail(`a block of type ${block.type}`);
    }
  } else if (result.type === "errored") {
    complete(result.error, ERROR);
    assert.equal(typeof result.error.error.message, "string");
  } else {
    assert.ok(["canceled", "expired"].includes(result.type), JSON.stringify(line));
  }
}

function request(customId: string, model = "claude-echo", content = "Hello there"): Current.Messages.BatchCreateParams.Request {
  return { custom_id: customId, params: { model, max_tokens: 20, messages: [{ role: "user", content }] } };
}

async function ended(id: string): Promise<Batch> {
  for (const deadline = Date.now() + WAIT_MS; ; ) {
    const batch = whole(await batches.retrieve(id));
    if (batch.processing_status === "ended") return batch;
    assert.equal(batch.results_url, null);
    assert.ok(Date.now() < deadline, `${id} did not end`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function resultsOf(id: string): Promise<Current.Messages.MessageBatchIndividualResponse[]> {
  const found = [];
  for await (const line of await batches.results(id)) {
    wholeResult(line);
    found.push(line);
  }
  return found;
}

async function refused(kind: new (...more: never[]) => Error, type: string, call: PromiseLike<unknown>): Promise<void> {
  let error: unknown;
  try {
    await call;
  } catch (thrown) {
    error = thrown;
  }
  assert.ok(error instanceof kind, `${kind.name} was expected, got ${String(error)}`);
  assert.ok(error instanceof Anthropic.APIError);
  const body = error.error as Current.ErrorResponse;
  assert.equal(body.type, "error");
  assert.equal(body.error.type, type);
  assert.equal(body.request_id, error.headers?.get("request-id"));
}

async function walkResults(): Promise<void> {
  const requests = Array.from({ length: 2000 }, (_, number) => request(`line-${number}`, "fast", `text\u2028 ${number}`));
  const { data, response } = await batches.create({ requests }).withResponse();
  assert.ok(response.headers.get("request-id"));
  assert.equal(whole(data).request_counts.processing, 2000);
  const batch = await ended(data.id);
  assert.equal(batch.results_url, `${url}/v1/messages/batches/${data.id}/results`);
  const results = await resultsOf(data.id);
  assert.deepEqual(
    results.map((line) => line.custom_id),
    requests.map((line) => line.custom_id),
  );
  const message = results[7]?.result.type === "succeeded" ? results[7].result.message : undefined;
  assert.equal(message?.content[0]?.type === "text" && message.content[0].text, "text\u2028 7");
  await refused(Anthropic.BadRequestError, "invalid_request_error", batches.cancel(data.id));
  assert.deepEqual(await batches.delete(data.id), { id: data.id, type: "message_batch_deleted" });
  await refused(Anthropic.NotFoundError, "not_found_error", batches.retrieve(data.id));
}

async function walkCancel(): Promise<void> {
  const batch = await batches.create({ requests: [request("a", "slow"), request("b", "gpt")] });
  await assert.rejects(async () => batches.results(batch.id), /results_url/);
  await refused(Anthropic.BadRequestError, "invalid_request_error", batches.delete(batch.id));
  const canceling = whole(await batches.cancel(batch.id));
  assert.ok(canceling.cancel_initiated_at);
  await ended(batch.id);
  assert.deepEqual(
    (await resultsOf(batch.id)).map((line) => line.result.type),
    ["canceled", "errored"],
  );
}

/** A model that thinks, then calls a tool; the answer of the tool goes back with both, as they came. */
async function walkTools(): Promise<void> {
  const tools = [{ name: "look", input_schema: { type: "object" as const } }];
  const asked = request("a");
  const thinking = { type: "adaptive" as const };
  const made = await batches.create({ requests: [{ ...asked, params: { ...asked.params, tools, thinking } }] });
  await ended(made.id);
  const first = (await resultsOf(made.id))[0]?.result;
  assert.ok(first?.type === "succeeded");
  assert.equal(first.message.stop_reason, "tool_use");
  const [thought, call] = first.message.content;
  assert.ok(thought?.type === "thinking" && thought.thinking === "Hm.");
  assert.ok(call?.type === "tool_use" && call.name === "look");
  assert.deepEqual(call.input, { place: "Zürich" });
  const messages: Current.MessageParam[] = [
    { role: "user", content: "Where?" },
    { role: "assistant", content: first.message.content },
    { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "Nowhere.", is_error: true }] },
  ];
  const next = await batches.create({ requests: [{ ...asked, params: { ...asked.params, tools, messages } }] });
  await ended(next.id);
  const second = (await resultsOf(next.id))[0]?.result;
  assert.ok(second?.type === "succeeded" && second.message.content[0]?.type === "text");
  assert.equal(second.message.content[0].text, "Where?");
}

async function walkErrors(): Promise<void> {
  const bad = Anthropic.BadRequestError;
  await refused(bad, "invalid_request_error", batches.create({ requests: [] }));
  await refused(bad, "invalid_request_error", batches.create({ requests: [request("a b")] }));
  await refused(bad, "invalid_request_error", batches.create({ requests: [request("a"), request("a")] }));
  await refused(bad, "invalid_request_error", batches.list({ limit: 0 }));
  await refused(Anthropic.NotFoundError, "not_found_error", batches.retrieve("msgbatch_nope"));
  const stranger = new Anthropic({ baseURL: url, apiKey: "nope", maxRetries: 0 });
  await refused(Anthropic.AuthenticationError, "authentication_error", stranger.messages.batches.list());
  const huge = batches.create({ requests: [request("a", "fast", "x".repeat(5_000_000))] });
  await refused(Anthropic.APIError, "request_too_large", huge);
  const full = new Anthropic({ baseURL: url, apiKey: pagesKey, maxRetries: 0 }).messages.batches;
  await refused(Anthropic.RateLimitError, "rate_limit_error", full.create({ requests: [request("a")] }));
}

async function walkPages(): Promise<void> {
  const pages = new Anthropic({ baseURL: url, apiKey: pagesKey }).messages.batches;
  const ids: string[] = [];
  for await (const batch of pages.list({ limit: 60 })) ids.push(whole(batch).id);
  assert.equal(new Set(ids).size, NUM_PAGED);
  const newer: string[] = [];
  for await (const batch of pages.list({ limit: 60, before_id: ids[200] as string })) newer.push(batch.id);
  assert.deepEqual(newer.sort(), ids.slice(0, 200).sort());
}

async function walkModels(): Promise<void> {
  const ids: string[] = [];
  for await (const model of client.models.list({ limit: 2 })) ids.push(complete(model, MODEL).id);
  assert.deepEqual(ids, ["fast", "idle", "llama-70b", "mistral", "slow"]);
  assert.equal((await client.models.retrieve("org/echo-1")).id, "fast");
}

/** The recorded exchanges hold every key that the types declare. */
function walkGolden(): void {
  const folder = fileURLToPath(new URL("../../golden/anthropic/", import.meta.url));
  for (const name of readdirSync(folder)) {
    const { response } = JSON.parse(readFileSync(folder + name, "utf8"));
    for (const line of response.lines ?? []) wholeResult(line);
    const batch = response.body?.type === "message_batch" ? [response.body] : [];
    for (const one of [...batch, ...(response.body?.data ?? [])]) whole(one);
  }
}

walkGolden();
await Promise.all([walkResults(), walkCancel(), walkTools(), walkErrors(), walkPages(), walkModels()]);
