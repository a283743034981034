/** The types of the stage contract, and the interface of every batch client. */

/** The service's settings may define more stages. */
export type Stage = 'sales_intel' | 'subject' | 'email' | 'polish' | (string & {});

/** The name of a pool. */
export type ModelHint = 'mistral' | 'llama-70b' | (string & {});

export interface TextBlock {
  type: 'text';
  text: string;
}

export interface BatchMessage {
  role: 'user' | 'assistant' | 'system';
  content: string | TextBlock[];
}

/** Defaults: `max_tokens` 2048, `temperature` 0.2. */
export interface BatchParams {
  messages: BatchMessage[];
  system?: string | TextBlock[];
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  stop_sequences?: string[];
  seed?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  repetition_penalty?: number;
  output_config?: { format?: { type: 'json_schema'; schema: Record<string, unknown> } };
}

/** `model_hint` overrides the pool of the stage. Other keys are your own. */
export interface BatchMetadata {
  model_hint?: ModelHint;
  leadId?: string | number;
  accountId?: string;
  [key: string]: unknown;
}

export interface BatchRequest {
  /** Unique in its batch; returned unchanged with the result. */
  custom_id: string;
  params: BatchParams;
  metadata?: BatchMetadata;
}

/**
 * An array is sent as one JSON body. Anything else is streamed, one request per line, in constant memory. A function is
 * called once per attempt and must return the same requests each time; an AsyncIterable can be read only once, so its
 * upload is not retried.
 */
export type BatchRequests = readonly BatchRequest[] | AsyncIterable<BatchRequest> | (() => AsyncIterable<BatchRequest>);

export interface BatchCreated {
  id: string;
}

/** `collected`: stored. `submitted`: planned. `processing`: a runner has started it. `ended`: results are available. */
export type ProcessingStatus = 'collected' | 'submitted' | 'processing' | 'ended';

export interface BatchCounts {
  total: number;
  succeeded: number;
  errored: number;
  pending: number;
}

export interface BatchStatus {
  id: string;
  processing_status: ProcessingStatus;
  counts: BatchCounts;
  /** RFC 3339. */
  created_at: string;
  updated_at: string;
}

/** Both are null at run time if a pool's HTTP endpoint does not report tokens; null adds up as 0. */
export interface BatchUsage {
  input_tokens: number;
  output_tokens: number;
}

export interface SucceededResult {
  custom_id: string;
  status: 'succeeded';
  message: { content: TextBlock[] };
  usage: BatchUsage;
  error: null;
}

export interface ErroredResult {
  custom_id: string;
  status: 'errored';
  message: null;
  usage: null;
  error: { type: string; message: string };
}

export type BatchResult = SucceededResult | ErroredResult;

export interface BatchResults {
  results: BatchResult[];
}

export interface CallOptions {
  /** Aborting it rejects the call with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Maximum time without data in one attempt: before the response begins, or between two pieces of it. */
  timeoutMs?: number | undefined;
  /** Attempts after the first. */
  maxRetries?: number | undefined;
}

export interface CreateOptions extends CallOptions {
  /** The same key and requests return the same batch. Default: a new key for each call. */
  idempotencyKey?: string | undefined;
}

export interface WaitOptions {
  signal?: AbortSignal | undefined;
  /** Called with every status received, including the last one. */
  onProgress?: ((status: BatchStatus) => void) | undefined;
}

/** The interface of a batch service, implemented by the local client, the hosted client and the router. */
export interface BatchClient {
  createBatch(stage: Stage, requests: BatchRequests, options?: CreateOptions): Promise<BatchCreated>;
  getBatchStatus(id: string, options?: CallOptions): Promise<BatchStatus>;
  /** Rejects with a BatchHttpError of status 400 while the batch has not ended. */
  getBatchResults(id: string, options?: CallOptions): Promise<BatchResults>;
  /** The same results one by one, in constant memory. */
  streamBatchResults(id: string, options?: CallOptions): AsyncIterable<BatchResult>;
  /** Resolves with the status once it is `ended`; rejects with a BatchTimeoutError after `maxWaitMs` (30 minutes). */
  waitForBatch(id: string, maxWaitMs?: number, options?: WaitOptions): Promise<BatchStatus>;
}
