/**
 * What an `openai` client does with files, uploads and batches, against a real service that has a runner. Compiled
 * against the types of both majors. `node openaiWalk.js current|old FOLDER` (for files of its own), with WALK_URL and
 * WALK_KEY. The current major needs Node 22.
 */

import assert from "node:assert/strict";
import { createReadStream, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import type Old from "openai";
import type OpenAI from "openai-7";

type Batch = OpenAI.Batch;
type Keys<T> = Record<keyof T, true>;
type Row<T> = { custom_id: string; response: { status_code: number; body: T } | null; error: unknown };
type Endpoint = OpenAI.BatchCreateParams["endpoint"];
type Called = { body: OpenAI.ChatCompletion; call: OpenAI.ChatCompletionMessageFunctionToolCall };

const WAIT_MS = 60_000;
const NUM_BATCHES = 7; // what the walks before that of the pages make
const ENDPOINT = "/v1/chat/completions";
const TOOLS: OpenAI.ChatCompletionTool[] = [{ type: "function", function: { name: "look", parameters: { type: "object" } } }];
const { WALK_URL: url = "", WALK_KEY: key = "" } = process.env;
const [, , version, folder = "."] = process.argv;
// The walk is typed by the current client; what it uses of the old one has the same shape, see below.
const library = (await (version === "old" ? import("openai") : import("openai-7"))) as typeof import("openai-7");
const { default: Client, toFile } = library;
const client = new Client({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });

// Every key that either client's types declare. A key that a client adds fails to compile here.
const BATCH: Keys<Batch> & Keys<Old.Batch> = {
  id: true,
  cancelled_at: true,
  cancelling_at: true,
  completed_at: true,
  completion_window: true,
  created_at: true,
  endpoint: true,
  error_file_id: true,
  errors: true,
  expired_at: true,
  expires_at: true,
  failed_at: true,
  finalizing_at: true,
  in_progress_at: true,
  input_file_id: true,
  metadata: true,
  model: true,
  object: true,
  output_file_id: true,
  request_counts: true,
  status: true,
  usage: true,
};
const COUNTS: Keys<OpenAI.BatchRequestCounts> & Keys<Old.BatchRequestCounts> = { completed: true, failed: true, total: true };
const USAGE: Keys<OpenAI.BatchUsage> & Keys<Old.BatchUsage> = {
  input_tokens: true,
  input_tokens_details: true,
  output_tokens: true,
  output_tokens_details: true,
  total_tokens: true,
};
const LINE_ERROR: Keys<OpenAI.BatchError> & Keys<Old.BatchError> = { code: true, line: true, message: true, param: true };
const FILE: Keys<OpenAI.FileObject> & Keys<Old.FileObject> = {
  id: true,
  bytes: true,
  created_at: true,
  expires_at: true,
  filename: true,
  object: true,
  purpose: true,
  status: true,
  status_details: true,
};
const UPLOAD: Keys<OpenAI.Upload> & Keys<Old.Upload> = {
  id: true,
  bytes: true,
  created_at: true,
  expires_at: true,
  file: true,
  filename: true,
  object: true,
  purpose: true,
  status: true,
};

// What the recorded answers of each endpoint must have; the rest is optional.
const CHAT: Keys<Omit<OpenAI.ChatCompletion, "metadata" | "moderation" | "service_tier" | "system_fingerprint">> = {
  id: true,
  choices: true,
  created: true,
  model: true,
  object: true,
  usage: true,
};
const COMPLETION: Keys<Omit<OpenAI.Completion, "system_fingerprint">> = CHAT;
const TEXT_CHOICE: Keys<OpenAI.CompletionChoice> = { finish_reason: true, index: true, logprobs: true, text: true };
const VECTORS: Keys<OpenAI.CreateEmbeddingResponse> = { data: true, model: true, object: true, usage: true };
const VECTOR: Keys<OpenAI.Embedding> = { embedding: true, index: true, object: true };

function complete(found: object, keys: Record<string, true>): void {
  assert.deepEqual(Object.keys(found).sort(), Object.keys(keys).sort());
}

function wholeBatch(batch: Batch): Batch {
  complete(batch, BATCH);
  if (batch.request_counts !== undefined) complete(batch.request_counts, COUNTS);
  if (batch.usage !== undefined) complete(batch.usage, USAGE);
  for (const error of batch.errors?.data ?? []) complete(error, LINE_ERROR);
  return batch;
}

function wholeFile(file: OpenAI.FileObject): OpenAI.FileObject {
  complete(file, FILE);
  return file;
}

function wholeCall(body: OpenAI.ChatCompletion): Called {
  complete(body, CHAT);
  const choice = body.choices[0];
  assert.deepEqual([choice?.finish_reason, choice?.message.content], ["tool_calls", null]);
  const call = choice?.message.tool_calls?.[0];
  assert.ok(call?.type === "function" && call.id);
  return { body, call };
}

function wholeCompletion(body: OpenAI.Completion): OpenAI.Completion {
  complete(body, COMPLETION);
  assert.equal(body.object, "text_completion");
  for (const choice of body.choices) complete(choice, TEXT_CHOICE);
  return body;
}

function wholeVectors(body: OpenAI.CreateEmbeddingResponse): OpenAI.CreateEmbeddingResponse {
  complete(body, VECTORS);
  body.data.forEach((vector, index) => {
    complete(vector, VECTOR);
    assert.deepEqual([vector.object, vector.index], ["embedding", index]);
  });
  return body;
}

function lineOf(url: Endpoint, customId: string, body: object): string {
  return `${JSON.stringify({ custom_id: customId, method: "POST", url, body })}\n`;
}

function line(customId: string, more: object = {}): string {
  return lineOf(ENDPOINT, customId, { model: "mistral", max_tokens: 16, messages: [{ role: "user", content: "Hello there" }], ...more });
}

async function until(id: string, ...states: Batch["status"][]): Promise<Batch> {
  for (const deadline = Date.now() + WAIT_MS; ; ) {
    const batch = wholeBatch(await client.batches.retrieve(id));
    if (states.includes(batch.status)) return batch;
    assert.ok(Date.now() < deadline, `${id} is still ${batch.status}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function rows<T = OpenAI.ChatCompletion>(fileId: string | undefined): Promise<Row<T>[]> {
  const text = await (await client.files.content(fileId ?? "none")).text();
  assert.ok(text.endsWith("\n"));
  return text.trimEnd().split("\n").map((row) => JSON.parse(row));
}

async function submit(text: string, endpoint: Endpoint = ENDPOINT): Promise<Batch> {
  const file = wholeFile(await client.files.create({ file: await toFile(Buffer.from(text), "in.jsonl"), purpose: "batch" }));
  return wholeBatch(
    await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" }),
  );
}

async function answers<T>(text: string, endpoint: Endpoint = ENDPOINT): Promise<T[]> {
  const batch = await until((await submit(text, endpoint)).id, "completed");
  return (await rows<T>(batch.output_file_id)).map((row) => row.response?.body as T);
}

async function refused(kind: new (...more: never[]) => Error, call: PromiseLike<unknown>): Promise<InstanceType<typeof Client.APIError>> {
  let error: unknown;
  try {
    await call;
  } catch (thrown) {
    error = thrown;
  }
  assert.ok(error instanceof kind, `${kind.name} expected, got ${String(error)}`);
  assert.ok(error instanceof Client.APIError);
  assert.ok(error.requestID);
  return error;
}

/** A file that is read from disk while it is sent, in chunks and without a length. */
async function batchOfAStream(): Promise<void> {
  const path = join(folder, "leads.jsonl");
  writeFileSync(path, Array.from({ length: 300 }, (_, number) => line(`r${number}`)).join("") + line("bad", { n: 0 }));
  const file = wholeFile(await client.files.create({ file: createReadStream(path), purpose: "batch" }));
  assert.equal(file.filename, "leads.jsonl");
  assert.equal(file.bytes, readFileSync(path).length);
  const created = await client.batches.create({
    input_file_id: file.id,
    endpoint: ENDPOINT,
    completion_window: "24h",
    metadata: { customer: "Jürgen" },
    output_expires_after: { anchor: "created_at", seconds: 3600 },
  });
  const batch = await until(created.id, "completed");
  assert.deepEqual(batch.request_counts, { total: 301, completed: 300, failed: 1 });
  assert.deepEqual(batch.metadata, { customer: "Jürgen" });
  const output = await rows(batch.output_file_id);
  assert.deepEqual(output.map((row) => row.custom_id), Array.from({ length: 300 }, (_, number) => `r${number}`));
  for (const row of output) assert.equal(typeof row.response?.body.choices[0]?.message.content, "string");
  const errors = await rows(batch.error_file_id);
  assert.deepEqual(errors.map((row) => [row.custom_id, row.response?.status_code]), [["bad", 400]]);
  wholeFile(await client.files.retrieve(batch.output_file_id ?? ""));
  assert.equal((await client.files.delete(batch.output_file_id ?? "")).deleted, true);
}

/** A model calls a tool; its answer goes back with the call, as it came. */
async function tools(): Promise<void> {
  const [first] = await answers<OpenAI.ChatCompletion>(line("a", { tools: TOOLS }));
  assert.ok(first);
  const { body, call } = wholeCall(first);
  assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], ["look", { city: "Bern" }]);
  const messages: OpenAI.ChatCompletionMessageParam[] = [
    { role: "user", content: "Where?" },
    body.choices[0]?.message as OpenAI.ChatCompletionMessage,
    { role: "tool", tool_call_id: call.id, content: "Here." },
  ];
  const [second] = await answers<OpenAI.ChatCompletion>(line("a", { tools: TOOLS, messages }));
  assert.deepEqual([second?.choices[0]?.finish_reason, second?.choices[0]?.message.content], ["stop", "Where?"]);
}

async function rawPrompts(): Promise<void> {
  const prompts = [{ prompt: "one two three", max_tokens: 2, n: 2 }, { prompt: [1, 2] }];
  const text = prompts.map((body, number) => lineOf("/v1/completions", `r${number}`, { model: "mistral", ...body })).join("");
  const found = (await answers<OpenAI.Completion>(text, "/v1/completions")).map(wholeCompletion);
  assert.deepEqual(found.map((body) => body.choices.map((choice) => choice.text)), [["one two", "one two"], ["1 2"]]);
}

async function vectors(): Promise<void> {
  const asked = { model: "vectors", input: ["a", "b", "a"], dimensions: 4 };
  const [found] = await answers<OpenAI.CreateEmbeddingResponse>(lineOf("/v1/embeddings", "a", asked), "/v1/embeddings");
  assert.ok(found);
  const [first, second, third] = wholeVectors(found).data.map((vector) => vector.embedding);
  assert.equal(first?.length, 4);
  assert.deepEqual(first, third);
  assert.notDeepEqual(first, second);
}

async function failedAndCancelled(): Promise<void> {
  const failed = await until((await submit(`${line("a")}{\n${line("a")}`)).id, "failed");
  assert.deepEqual(failed.errors?.data?.map((error) => [error.code, error.line]), [["invalid_json_line", 2]]);
  assert.equal(failed.output_file_id, null);
  const open = await submit(line("a", { model: "llama-70b" })); // a pool that has no runner
  await until(open.id, "in_progress");
  assert.ok(["cancelling", "cancelled"].includes(wholeBatch(await client.batches.cancel(open.id)).status));
  const cancelled = await until(open.id, "cancelled");
  assert.deepEqual((await rows(cancelled.error_file_id)).map((row) => (row.error as { code: string }).code), ["batch_cancelled"]);
  await refused(Client.BadRequestError, client.batches.cancel(open.id));
}

async function pages(): Promise<void> {
  const made: string[] = [];
  for (let number = 0; number < 7; number += 1) {
    const file = await client.files.create({ file: await toFile(Buffer.from("{}\n"), "page.jsonl"), purpose: "batch" });
    made.push(file.id);
  }
  const seen: string[] = [];
  for await (const file of client.files.list({ limit: 2, order: "asc" })) {
    wholeFile(file);
    if (file.filename === "page.jsonl") seen.push(file.id);
  }
  assert.deepEqual(seen, made);
  const ids: string[] = [];
  for await (const batch of client.batches.list({ limit: 1 })) ids.push(wholeBatch(batch).id);
  assert.equal(ids.length, NUM_BATCHES);
  assert.equal(new Set(ids).size, NUM_BATCHES);
}

async function uploads(): Promise<void> {
  const upload = await client.uploads.create({ bytes: 6, filename: "f.jsonl", mime_type: "application/jsonl", purpose: "batch" });
  complete(upload, UPLOAD);
  const parts = [];
  for (const data of ["def", "abc"]) {
    parts.unshift((await client.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(data), "part") })).id);
  }
  const done = await client.uploads.complete(upload.id, { part_ids: parts });
  assert.equal(done.status, "completed");
  wholeFile(done.file as OpenAI.FileObject);
  assert.equal(await (await client.files.content(done.file?.id ?? "")).text(), "abcdef");
  await refused(Client.BadRequestError, client.uploads.cancel(upload.id));
  const other = await client.uploads.create({ bytes: 1, filename: "g", mime_type: "text/plain", purpose: "batch" });
  assert.equal((await client.uploads.cancel(other.id)).status, "cancelled");
}

async function errors(): Promise<void> {
  const stranger = new Client({ baseURL: `${url}/v1`, apiKey: "nobody's", maxRetries: 0 });
  assert.equal((await refused(Client.AuthenticationError, stranger.batches.list())).code, "invalid_api_key");
  await refused(Client.NotFoundError, client.batches.retrieve("batch_none"));
  await refused(Client.NotFoundError, client.files.content("file-none"));
  const wrong = client.batches.create({ input_file_id: "file-none", endpoint: ENDPOINT, completion_window: "24h" });
  assert.equal((await refused(Client.BadRequestError, wrong)).param, "input_file_id");
}

/** The recorded exchanges have every key that this client's types declare, and it verifies the recorded event. */
async function recorded(): Promise<void> {
  const golden = fileURLToPath(new URL("../../golden/openai/", import.meta.url));
  for (const name of readdirSync(golden)) {
    const exchange = JSON.parse(readFileSync(join(golden, name), "utf8"));
    const body = exchange.response?.body;
    if (body?.object === "batch") wholeBatch(body);
    if (body?.object === "file" && body.deleted === undefined) wholeFile(body);
    if (body?.object === "upload") complete(body, UPLOAD);
    const given = exchange.response?.lines ?? [body];
    if (name === "tools_output.json") for (const row of given) wholeCall(row.response.body);
    if (name === "completions_output.json") for (const row of given) wholeCompletion(row.response.body);
    if (name === "embeddings_output.json") for (const row of given) wholeVectors(row.response.body);
    for (const item of body?.object === "list" ? body.data : []) (item.object === "batch" ? wholeBatch : wholeFile)(item);
  }
  const { headers, body, secret } = JSON.parse(readFileSync(join(golden, "webhook.json"), "utf8"));
  const event = await client.webhooks.unwrap(body, headers, secret, Number.MAX_SAFE_INTEGER);
  assert.equal(event.type, "batch.failed");
}

await batchOfAStream();
await failedAndCancelled();
await tools();
await rawPrompts();
await vectors();
await pages();
await uploads();
await errors();
await recorded();
