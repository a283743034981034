/**
 * What a request asks of a model: the parameters of Anthropic's Messages API and vLLM's own. docs/requests.md says for
 * each key which engines serve it. A value of a wrong type or out of range fails its request alone, with the key's name.
 */

/** A JSON schema, draft 2020-12 unless `$schema` says otherwise. */
export type JsonSchema = Record<string, unknown>;

/** For the hosted API. The local service caches prefixes without it. */
export interface CacheControl {
  type: 'ephemeral';
  ttl?: '5m' | '1h';
}

export interface TextBlock {
  type: 'text';
  text: string;
}

export interface TextBlockParam extends TextBlock {
  cache_control?: CacheControl | null;
}

/**
 * Bytes in base64, or a URL (`https:`, `http:`, `s3:`). The service reads only hosts and buckets that its operator
 * allows to your tenant; a request with any other URL fails with its name.
 */
export type MediaSource = { type: 'base64'; media_type: string; data: string } | { type: 'url'; url: string };

/** PNG, JPEG, WebP, GIF, BMP or TIFF, at most 20 MiB and 40 million pixels. Only in user turns. */
export interface ImageBlockParam {
  type: 'image';
  source: MediaSource;
  cache_control?: CacheControl | null;
}

/** A document of text, at most 20 MiB. The model reads its title, its context and its text. Only in user turns. */
export interface DocumentBlockParam {
  type: 'document';
  source:
    | MediaSource
    | { type: 'text'; media_type: 'text/plain'; data: string }
    | { type: 'content'; content: string | (TextBlockParam | ImageBlockParam)[] };
  title?: string | null;
  context?: string | null;
  cache_control?: CacheControl | null;
}

/** The model calls a tool. Give it back in an assistant turn, and its result in the next user turn. */
export interface ToolUseBlock {
  type: 'tool_use';
  id: string;
  name: string;
  input: Record<string, unknown>;
}

export interface ToolUseBlockParam extends ToolUseBlock {
  cache_control?: CacheControl | null;
}

export interface ToolResultBlockParam {
  type: 'tool_result';
  /** The `id` of an earlier tool_use block. */
  tool_use_id: string;
  content?: string | TextBlockParam[];
  /** The model reads `Error: ` before the content. */
  is_error?: boolean;
  cache_control?: CacheControl | null;
}

/** What the model thought before its answer. `signature` is empty in answers of the local service. */
export interface ThinkingBlock {
  type: 'thinking';
  thinking: string;
  signature: string;
}

/** Thinking of an earlier answer may be sent back; the local service does not show it to the model. */
export interface ThinkingBlockParam {
  type: 'thinking';
  thinking: string;
  signature?: string;
}

export interface RedactedThinkingBlock {
  type: 'redacted_thinking';
  data: string;
}

export type ContentBlockParam =
  | TextBlockParam
  | ImageBlockParam
  | DocumentBlockParam
  | ToolUseBlockParam
  | ToolResultBlockParam
  | ThinkingBlockParam
  | RedactedThinkingBlock;

export interface BatchMessage {
  /** `system` turns become one system text at the start. A last turn of the assistant is continued. */
  role: 'user' | 'assistant' | 'system';
  content: string | ContentBlockParam[];
}

export interface ToolDefinition {
  type?: 'custom';
  name: string;
  description?: string;
  input_schema: JsonSchema;
  /** For endpoints, which get it as it is. */
  strict?: boolean;
  cache_control?: CacheControl | null;
}

/** `auto` (default): the model decides. `any`: some tool. `tool`: this one. `none`: the model is not shown the tools. */
export type ToolChoice =
  | { type: 'auto' | 'any'; disable_parallel_tool_use?: boolean }
  | { type: 'tool'; name: string; disable_parallel_tool_use?: boolean }
  | { type: 'none' };

export interface JsonSchemaFormat {
  type: 'json_schema';
  schema: JsonSchema;
}

export interface OutputConfig {
  /** Guides the answer and checks it; one that does not fit after three attempts is errored (`model_error`). */
  format?: JsonSchemaFormat;
  /** How much the model thinks: a variable of its chat template. Fails if the template uses none. */
  effort?: 'low' | 'medium' | 'high' | 'xhigh' | 'max';
}

export interface Thinking {
  type: 'enabled' | 'adaptive' | 'between_tools' | 'disabled';
  /** Tokens. */
  budget_tokens?: number;
}

/** What the answer must match: one of `json`, `json_object`, `regex`, `choice`, `grammar` and `structural_tag`. */
export interface StructuredOutputs {
  json?: JsonSchema | string;
  json_object?: boolean;
  regex?: string;
  choice?: string[];
  /** In EBNF. */
  grammar?: string;
  /** JSON text. */
  structural_tag?: string;
  disable_any_whitespace?: boolean;
  disable_additional_properties?: boolean;
  whitespace_pattern?: string;
}

/** Ends an answer that repeats itself. Sizes are in tokens. */
export interface RepetitionDetection {
  max_pattern_size?: number;
  min_pattern_size?: number;
  min_count?: number;
}

export interface CoreParams {
  messages: BatchMessage[];
  system?: string | TextBlockParam[];
  /** A LoRA adapter of the stage's pool. Other names change nothing: `metadata.model_hint` chooses the pool. */
  model?: string;
  /** Tokens of the answer; default 2048, lowered to what fits. Your own value fails the request if it does not fit. */
  max_tokens?: number;
  /** 0 to 2; default 0.2. */
  temperature?: number;
  /** Above 0, up to 1; default 1. */
  top_p?: number;
  /** Tokens to choose from; default, 0 and -1: all. */
  top_k?: number;
  /** 0 to 1: relative to the likeliest token. */
  min_p?: number;
  /** The answer ends before the first of these. */
  stop_sequences?: string[];
  /** The same seed and request give the same answer from the same engine. */
  seed?: number;
  /** -2 to 2; default 0. */
  presence_penalty?: number;
  /** -2 to 2; default 0. */
  frequency_penalty?: number;
  /** Above 0; default 1. */
  repetition_penalty?: number;
  /** Always generate `max_tokens`. */
  ignore_eos?: boolean;
  output_config?: OutputConfig;
  /** The older name of `output_config.format`. */
  output_format?: JsonSchemaFormat;
  /** Default: what the model does by itself. Thinking is in native results only. */
  thinking?: Thinking;
  /** Needs a model with tools; calls are `tool_use` blocks of the result. */
  tools?: ToolDefinition[];
  tool_choice?: ToolChoice;
}

/** vLLM's own keys, with vLLM's meanings. Most results of these are in native results only. */
export interface EngineParams {
  /** Number of answers, 1 to 128; default 1. All but the first are in `choices` of the native result. */
  n?: number;
  /** Report the natural logarithm of each token's probability, in `logprobs` of the native result. */
  logprobs?: boolean;
  /** With `logprobs`: also this many of the likeliest tokens in each place. vLLM allows 20 unless its pool says more. */
  top_logprobs?: number;
  /** The same for these tokens. */
  logprob_token_ids?: number[];
  /** Likeliest tokens in each place of the prompt, in `prompt_logprobs` of the native result; -1: all. */
  prompt_logprobs?: number;
  /** Report `token_ids` and `prompt_token_ids` in the native result. */
  return_token_ids?: boolean;
  /** Write tokens in logprobs as `token_id:123`. */
  return_tokens_as_token_ids?: boolean;
  /** Token id to -100..100, added to its logit. */
  logit_bias?: Record<string, number>;
  allowed_token_ids?: number[];
  stop_token_ids?: number[];
  bad_words?: string[];
  min_tokens?: number;
  include_stop_str_in_output?: boolean;
  skip_special_tokens?: boolean;
  spaces_between_special_tokens?: boolean;
  repetition_detection?: RepetitionDetection;
  watermarking?: boolean;
  /** Begin the answer with the prompt. */
  echo?: boolean;

  structured_outputs?: StructuredOutputs;
  /** The older forms of `structured_outputs`. */
  guided_json?: JsonSchema | string;
  guided_regex?: string;
  guided_choice?: string[];
  guided_grammar?: string;
  guided_whitespace_pattern?: string;

  /** Keep this many tokens of the prompt; -1: as many as fit. */
  truncate_prompt_tokens?: number;
  truncation_side?: 'left' | 'right';
  add_special_tokens?: boolean;
  add_generation_prompt?: boolean;
  /** Continue the last turn. Default: true if it is the assistant's. */
  continue_final_message?: boolean;
  /** Variables of the chat template, such as `{ enable_thinking: false }`. */
  chat_template_kwargs?: Record<string, unknown>;
  /** How long answers are: a variable of the chat template; fails if the template does not use it. */
  verbosity?: 'low' | 'medium' | 'high';
  /** A variable of the chat template; fails if the template does not use it. */
  documents?: Record<string, unknown>[];

  /** Needs a pool with `scheduling_policy = "priority"`; lower runs first. The priority of a batch is another one. */
  priority?: number;
  /** vLLM's prefix cache is separate for each value. */
  cache_salt?: string;
  /** For samplers of your own in vLLM. */
  vllm_xargs?: Record<string, string | number | (string | number)[]>;
}

/** Only pools with an HTTP endpoint serve these. On any other, a request with one of them fails with its name. */
export interface EndpointParams {
  mm_processor_kwargs?: Record<string, unknown>;
  media_io_kwargs?: Record<string, unknown>;
  use_beam_search?: boolean;
  length_penalty?: number;
  guided_decoding_backend?: string;
  chat_template?: string;
}

/** The hosted API has a use for these. The local service accepts them, and they change nothing there. */
export interface HostedParams {
  cache_control?: CacheControl | null;
  metadata?: { user_id?: string | null };
  service_tier?: 'auto' | 'standard_only';
}

export interface BatchParams extends CoreParams, EngineParams, EndpointParams, HostedParams {}
