/**
 * An application that uses the package: compiled for each kind of module resolution, and run as a CommonJS and as an ES
 * module against a service with the echo engine. `node app.js`, with LOCAL_BATCH_URL.
 */

import { deepEqual, equal, ok, rejects } from 'node:assert/strict';

import {
  BatchHttpError,
  createBatch,
  createLocalClient,
  getBatchResults,
  getBatchStatus,
  getNativeStatus,
  streamBatchResults,
  streamNativeResults,
  waitForBatch,
  type BatchMessage,
  type BatchParams,
  type BatchRequest,
  type BatchResult,
  type NativeAnswer,
  type ResultBlock,
} from '@batchfile/adapter';

const WAIT_MS = 300_000;
const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABXvMqOgAAAABJRU5ErkJggg==';
const ASKED: BatchMessage[] = [{ role: 'user', content: 'red green blue' }];

/** As applications have had it from the first version on: this must compile and work unchanged. */
async function processBatchResults(results: BatchResult[]): Promise<string[]> {
  return results.map((result) => {
    if (result.status === 'errored') return `${result.custom_id}: ${result.error.type}`;
    const { input_tokens, output_tokens } = result.usage;
    ok(input_tokens + output_tokens > 0);
    return `${result.custom_id}: ${result.message.content[0].text.trim()}`;
  });
}

const tools: BatchParams['tools'] = [
  { name: 'look_up', description: 'Finds a company.', input_schema: { type: 'object', properties: {} } },
];

/** A value of every key. A key that the types gain fails to compile here, and one that the service rejects fails below. */
const VALUES: { [Key in keyof Required<BatchParams>]: BatchParams[Key] } = {
  messages: ASKED,
  system: [{ type: 'text', text: 'Be brief.', cache_control: { type: 'ephemeral' } }],
  model: 'mistral',
  max_tokens: 20,
  temperature: 0,
  top_p: 0.9,
  top_k: 5,
  min_p: 0.1,
  stop_sequences: ['###'],
  seed: 7,
  presence_penalty: 0.5,
  frequency_penalty: 0.5,
  repetition_penalty: 1.1,
  ignore_eos: true,
  output_config: { format: { type: 'json_schema', schema: { type: 'object' } }, effort: 'low' },
  output_format: { type: 'json_schema', schema: { type: 'object' } },
  thinking: { type: 'enabled', budget_tokens: 1024 },
  tools,
  tool_choice: { type: 'tool', name: 'look_up' },
  n: 2,
  logprobs: true,
  top_logprobs: 2,
  logprob_token_ids: [1, 2],
  prompt_logprobs: 1,
  return_token_ids: true,
  return_tokens_as_token_ids: true,
  logit_bias: { '17': -5 },
  allowed_token_ids: [1, 2, 3],
  stop_token_ids: [2],
  bad_words: ['cheap'],
  min_tokens: 1,
  include_stop_str_in_output: true,
  skip_special_tokens: true,
  spaces_between_special_tokens: false,
  repetition_detection: { max_pattern_size: 8, min_pattern_size: 1, min_count: 4 },
  watermarking: false,
  echo: true,
  structured_outputs: { choice: ['yes', 'no'] },
  guided_json: { type: 'object' },
  guided_regex: '[a-z]+',
  guided_choice: ['yes', 'no'],
  guided_grammar: 'root ::= "yes" | "no"',
  guided_whitespace_pattern: ' ?',
  truncate_prompt_tokens: 100,
  truncation_side: 'left',
  add_special_tokens: false,
  add_generation_prompt: true,
  continue_final_message: false,
  chat_template_kwargs: { enable_thinking: false },
  verbosity: 'low',
  documents: [{ title: 'A', text: 'B' }],
  priority: 0,
  cache_salt: 'tenant',
  vllm_xargs: { strength: 0.5 },
  mm_processor_kwargs: { num_crops: 4 },
  media_io_kwargs: { image: {} },
  use_beam_search: true,
  length_penalty: 2,
  guided_decoding_backend: 'xgrammar',
  chat_template: '{{ messages }}',
  cache_control: { type: 'ephemeral' },
  metadata: { user_id: 'u' },
  service_tier: 'auto',
};

/** What else a key needs. */
const NEEDS: Partial<Record<keyof BatchParams, BatchParams>> = {
  tool_choice: { messages: ASKED, tools },
  top_logprobs: { messages: ASKED, logprobs: true },
  logprob_token_ids: { messages: ASKED, logprobs: true },
  guided_whitespace_pattern: { messages: ASKED, guided_json: { type: 'object' } },
};
const ONLY_ENDPOINTS = [
  'mm_processor_kwargs',
  'media_io_kwargs',
  'use_beam_search',
  'length_penalty',
  'guided_decoding_backend',
  'chat_template',
];

async function run(requests: BatchRequest[], options = {}): Promise<string> {
  const { id } = await createBatch('email', requests, options);
  const { counts } = await waitForBatch(id, WAIT_MS, { onProgress: ({ counts }) => ok(counts.pending >= 0) });
  equal(counts.total, requests.length);
  return id;
}

/** The service takes every key of the types; an engine without a model rejects those of endpoints by name. */
async function everyKey(): Promise<void> {
  const keys = Object.keys(VALUES) as (keyof BatchParams)[];
  const requests = keys.map((key) => ({
    custom_id: key,
    params: { messages: ASKED, ...NEEDS[key], [key]: VALUES[key] },
  }));
  const { results } = await getBatchResults<ResultBlock>(await run(requests));
  for (const { custom_id, status, error } of results) {
    const expected = ONLY_ENDPOINTS.includes(custom_id) ? 'errored' : 'succeeded';
    equal(status, expected, `${custom_id}: ${error?.message}`);
    if (error) ok(error.message.includes(custom_id), error.message);
  }
}

async function answerOf(id: string, custom_id: string): Promise<NativeAnswer> {
  for await (const result of streamNativeResults(id)) {
    if (result.custom_id === custom_id && result.status === 'succeeded' && result.message) return result;
  }
  throw new Error(`${custom_id} has no answer`);
}

/** Tools, thinking, images, logprobs and several answers, in stage results and in native ones. */
async function answers(): Promise<void> {
  const image: BatchMessage = {
    role: 'user',
    content: [
      { type: 'text', text: 'See' },
      { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PIXEL } },
      { type: 'document', source: { type: 'text', media_type: 'text/plain', data: 'A page.' }, title: 'Notes' },
    ],
  };
  const id = await run([
    { custom_id: 'plain', params: { messages: ASKED }, metadata: { leadId: 7, ours: [1] } },
    { custom_id: 'tools', params: { messages: ASKED, tools, thinking: { type: 'adaptive' } } },
    { custom_id: 'image', params: { messages: [image] } },
    { custom_id: 'logprobs', params: { messages: ASKED, logprobs: true, top_logprobs: 1 } },
    { custom_id: 'several', params: { messages: ASKED, n: 2 } },
    { custom_id: 'bad', params: { messages: ASKED, max_tokens: -1 } },
  ]);
  const { results } = await getBatchResults(id);
  deepEqual(
    (await processBatchResults(results.filter(({ custom_id }) => custom_id !== 'tools'))).filter((_, n) => n !== 1),
    ['plain: red green blue', 'logprobs: red green blue', 'several: red green blue', 'bad: invalid_request_error'],
  );
  const streamed: BatchResult<ResultBlock>[] = [];
  for await (const result of streamBatchResults<ResultBlock>(id)) streamed.push(result);
  deepEqual(results, streamed);
  const called = streamed[1]?.message?.content[0];
  ok(called?.type === 'tool_use' && called.name === 'look_up', 'a call is the first block, without thinking');

  const [thought, call] = (await answerOf(id, 'tools')).message.content;
  ok(thought?.type === 'thinking' && thought.thinking === 'Hm.');
  ok(call?.type === 'tool_use');
  deepEqual(called, call);
  const seen = await answerOf(id, 'image');
  ok(seen.message.content[0]?.type === 'text' && /\[image 1x1\]/.test(seen.message.content[0].text));
  deepEqual([seen.media?.length, seen.media?.[0]?.type, seen.media?.[0]?.sha256?.length], [1, 'image', 64]);
  const { logprobs, stop_reason, model, usage } = await answerOf(id, 'logprobs');
  deepEqual([logprobs?.length, stop_reason, typeof model], [usage?.output_tokens, 'end_turn', 'string']);
  ok(logprobs?.every(({ token, logprob, top_logprobs }) => token && logprob !== null && logprob <= 0 && top_logprobs.length <= 1));
  equal((await answerOf(id, 'several')).choices?.length, 2);

  const messages: BatchMessage[] = [
    ...ASKED,
    { role: 'assistant', content: (await answerOf(id, 'tools')).message.content },
    { role: 'user', content: [{ type: 'tool_result', tool_use_id: call.id, content: 'Nothing.', is_error: true }] },
  ];
  const next = await getBatchResults(await run([{ custom_id: 'next', params: { messages, tools } }]));
  equal(next.results[0]?.status, 'succeeded');
}

async function options(): Promise<void> {
  const request: BatchRequest = { custom_id: 'a', params: { messages: ASKED, max_tokens: 2 } };
  const given = { pool: 'llama-70b', priority: 1, metadata: { team: 'sales', run: '7' }, strict: false };
  const first = await run([request], given);
  const native = await getNativeStatus(first);
  deepEqual([native.state, native.priority, native.metadata], ['ended', 1, given.metadata]);
  const models = new Set<string>();
  const hinted = async function* (): AsyncGenerator<BatchRequest> {
    yield { ...request, custom_id: 'b' };
    yield { ...request, custom_id: 'c', metadata: { model_hint: 'mistral' } };
  };
  for (const requests of [hinted, [{ ...request, custom_id: 'b' }]]) {
    const { id } = await createBatch('email', requests, { modelHint: 'llama-70b', reuse: first });
    await waitForBatch(id, WAIT_MS);
    models.add((await answerOf(id, 'b')).model);
    deepEqual((await getNativeStatus(id)).reused, { [first]: 1 });
  }
  equal(models.size, 1);
  await rejects(createBatch('email', [request], { reuse: 'batch_000000000000' }), (error: unknown) => {
    ok(error instanceof BatchHttpError);
    return error.status === 404 && /reuse/.test(error.message);
  });
  const stranger = createLocalClient({ baseUrl: process.env['LOCAL_BATCH_URL'] ?? '', maxRetries: 0 });
  equal((await stranger.getBatchStatus(first)).processing_status, (await getBatchStatus(first)).processing_status);
}

async function main(): Promise<void> {
  await Promise.all([everyKey(), answers(), options()]);
  console.log('done');
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
