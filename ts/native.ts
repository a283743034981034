/** Native results and status: everything that the service knows, where the stage contract has a few keys. */

import type { TextBlock, ThinkingBlock, ToolUseBlock } from './params.js';

/** In this order: thinking, text, tool calls. */
export type NativeBlock = ThinkingBlock | TextBlock | ToolUseBlock;

/** `content_filter`: an endpoint's filter stopped the answer. The hosted API has further ones. */
export type StopReason = 'end_turn' | 'max_tokens' | 'stop_sequence' | 'tool_use' | 'refusal' | 'content_filter';

export interface TopLogprob {
  token: string;
  /** The natural logarithm of its probability. */
  logprob: number;
  /** Of its text in UTF-8; null if unknown. */
  bytes: number[] | null;
}

/** A token of an answer, and the likeliest ones in its place, likeliest first. */
export interface TokenLogprob extends Omit<TopLogprob, 'logprob'> {
  /** Null for the first token of a prompt that a completion repeats (`echo`). */
  logprob: number | null;
  top_logprobs: TopLogprob[];
}

export interface PromptLogprob {
  logprob: number;
  rank?: number | null;
  decoded_token?: string | null;
}

export interface NativeMessage {
  content: NativeBlock[];
}

export interface NativeChoice {
  message: NativeMessage;
  stop_reason: StopReason;
  /** For each token, if requested. */
  logprobs?: TokenLogprob[];
  token_ids?: number[];
}

/** Tokens. */
export interface NativeUsage {
  input_tokens: number;
  output_tokens: number;
  /** The part of `input_tokens` that came from a prefix cache. */
  cached_tokens: number;
}

/** An image or a document of the request, and the digest of the bytes that were read. */
export interface NativeMedia {
  type: 'image' | 'audio' | 'document';
  /** In hex; null if an endpoint read them itself. */
  sha256: string | null;
}

interface NativeLine {
  custom_id: string;
  /** In the order of the request; absent without any. */
  media?: NativeMedia[];
}

export interface NativeAnswer extends NativeLine {
  status: 'succeeded';
  /** The first answer. */
  message: NativeMessage;
  stop_reason: StopReason;
  /** The one of `stop_sequences` that ended the answer, where known. */
  stop_sequence?: string;
  model: string;
  /** Null if an HTTP endpoint did not report it. */
  usage: NativeUsage | null;
  error: null;
  /** Absent for requests of this adapter; others are of OpenAI's batches. */
  kind?: 'completion' | 'response' | 'message';
  /** If `n` is above 1: all answers, each with its own `logprobs` and `token_ids`. */
  choices?: NativeChoice[];
  /** If requested and there is one answer: for each token. */
  logprobs?: TokenLogprob[];
  token_ids?: number[];
  /** If requested: for each token of the prompt by token id; null for the first. */
  prompt_logprobs?: (Record<string, PromptLogprob> | null)[];
  prompt_token_ids?: number[];
}

/** Of OpenAI's batches of embeddings, scores, classes and pooling, which have no message. */
export interface NativeVectors extends NativeLine {
  status: 'succeeded';
  message: null;
  stop_reason: null;
  model: string;
  usage: NativeUsage | null;
  error: null;
  kind: 'embedding' | 'score' | 'rerank' | 'classification' | 'pooling';
  /**
   * One for each input: numbers, or float32 in base64. Of pooling, one for each token of each input, if the model has
   * these. Of a rerank, the index and the score of each document, nearest first.
   */
  vectors: (number[] | number[][] | string)[];
  /** Of the likeliest class of each input; null if the model does not name it. */
  labels?: (string | null)[];
}

export interface NativeFailure extends Omit<NativeLine, 'custom_id'> {
  /** Null for a line that has none. */
  custom_id: string | null;
  /** The line of the file, from 1, if there is no custom_id. */
  line?: number;
  status: 'errored' | 'canceled' | 'expired';
  message: null;
  stop_reason: null;
  model: null;
  usage: null;
  /** `http_status`: of an HTTP endpoint's response. */
  error: { type: string; message: string; http_status?: number };
}

/**
 * Check `status`, then `message`: a refusal or a filtered answer has succeeded here, with that `stop_reason`. The stage
 * contract has no place for either and shows them as errored.
 */
export type NativeResult = NativeAnswer | NativeVectors | NativeFailure;

/** Requests that did not succeed for one reason. */
export interface FailureGroup {
  type: string;
  /** With … for what differs between them. */
  message: string;
  /** How many. */
  requests: number;
  /** Of one of them. */
  line: number | null;
  custom_id: string | null;
  http_status: number | null;
  /** The beginning of its own message. */
  example: string;
  /** What to do. */
  advice: string;
}

/** Why the requests of a pool do not run. */
export interface Waiting {
  pool: string;
  cause: 'no_runner' | 'endpoint_down' | 'loading' | 'set_aside';
  message: string;
  /** Seconds since 1970; null if unknown. */
  since: number | null;
}

/** How an ended batch went; without what was reused or never ran. */
export interface BatchProfile {
  /** Epoch seconds. */
  started_at: number;
  /** The length of a step in seconds. */
  step_s: number;
  /** Requests done in each step. */
  requests: number[];
  output_tokens: number[];
  /** Requests by their time in the engine: up to 0.01, 0.02, 0.05, 0.1 ... 1,000 s, and longer. */
  request_s: number[];
}

export interface PoolProgress {
  shards: number;
  shards_done: number;
  shards_leased: number;
  requests: number;
  requests_finished: number;
}

/** All times are in seconds since 1970. */
export interface NativeStatus {
  id: string;
  /** `damaged`, `unreadable`: the stored record cannot be read; only `id` and `created_at` are known. */
  state: 'planning' | 'open' | 'ending' | 'ended' | 'damaged' | 'unreadable';
  /** Why it ended; null before that. */
  reason: 'completed' | 'canceled' | 'expired' | 'failed' | 'input_changed' | null;
  detail: string | null;
  stage: string | null;
  total: number;
  succeeded: number;
  /** Includes `rejected`. */
  errored: number;
  canceled: number;
  expired: number;
  pending: number;
  /** Invalid requests, which never ran. */
  rejected: number;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  /** Results without known tokens, which the sums leave out. */
  usage_unknown: number;
  /** The most frequent reasons. */
  failures: FailureGroup[];
  /** Empty unless nothing moves. */
  waiting_for: Waiting[];
  /** GPU seconds; 0 if no GPU is known. */
  gpu_s: number;
  created_at: number;
  updated_at: number;
  ended_at: number | null;
  expires_at: number;
  metadata: Record<string, string>;
  /** 0 (first) to 9. */
  priority: number;
  dialect: 'native' | 'openai';
  inbox_path: string | null;
  /** The pools that work on it. */
  pools: Record<string, PoolProgress>;
  /** Id of an earlier batch to how many of its results this one took over. */
  reused: Record<string, number>;
  /** Why nothing was reused, where that was wanted. */
  reuse_note: string | null;
  /** Of an ended batch; lists of batches leave it out. */
  profile: BatchProfile | null;
}
