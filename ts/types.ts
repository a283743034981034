/** What goes over the wire in the stage contract, and what every batch client can do. Knows no client. */

/** More stages may exist by the service's configuration. */
export type Stage = 'sales_intel' | 'subject' | 'email' | 'polish' | (string & {});

/** A pool's name. */
export type ModelHint = 'mistral' | 'llama-70b' | (string & {});

export interface TextBlock {
  type: 'text';
  text: string;
}

export interface BatchMessage {
  role: 'user' | 'assistant' | 'system';
  content: string | TextBlock[];
}

/** `max_tokens` is 2048 and `temperature` 0.2 where they are not given. */
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

/** `model_hint` wins over the stage's own pool. Other keys are carried for the caller. */
export interface BatchMetadata {
  model_hint?: ModelHint;
  leadId?: string | number;
  accountId?: string;
  [key: string]: unknown;
}

export interface BatchRequest {
  /** Unique in its batch; comes back byte for byte. */
  custom_id: string;
  params: BatchParams;
  metadata?: BatchMetadata;
}

/**
 * An array goes out as one JSON body. Anything else is streamed, one request a line, and never held as a whole.
 * A function is called once per attempt and must give the same requests each time; a bare AsyncIterable can be
 * read only once, so its upload is not retried.
 */
export type BatchRequests = readonly BatchRequest[] | AsyncIterable<BatchRequest> | (() => AsyncIterable<BatchRequest>);

export interface BatchCreated {
  id: string;
}

/** `collected`: stored. `submitted`: planned. `processing`: a runner has begun. `ended`: results are there. */
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

/** Both are null at run time where a pool's HTTP endpoint does not tell its tokens; null adds up as 0. */
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
  /** Ends the call with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** The longest silence of one attempt: before the answer begins, or between two pieces of it. */
  timeoutMs?: number | undefined;
  /** Attempts after the first. */
  maxRetries?: number | undefined;
}

export interface CreateOptions extends CallOptions {
  /** The same key and requests give the same batch. One is made per call where none is given. */
  idempotencyKey?: string | undefined;
}

export interface WaitOptions {
  signal?: AbortSignal | undefined;
  /** Called with every status that arrives, the last one included. */
  onProgress?: ((status: BatchStatus) => void) | undefined;
}

/** What the application needs of a batch service. The local client, the hosted one and the router are each one. */
export interface BatchClient {
  createBatch(stage: Stage, requests: BatchRequests, options?: CreateOptions): Promise<BatchCreated>;
  getBatchStatus(id: string, options?: CallOptions): Promise<BatchStatus>;
  /** Rejects with a BatchHttpError of status 400 while the batch has not ended. */
  getBatchResults(id: string, options?: CallOptions): Promise<BatchResults>;
  /** The same results one by one, in flat memory. */
  streamBatchResults(id: string, options?: CallOptions): AsyncIterable<BatchResult>;
  /** Resolves with the status once it is `ended`; rejects with a BatchTimeoutError after `maxWaitMs` (30 minutes). */
  waitForBatch(id: string, maxWaitMs?: number, options?: WaitOptions): Promise<BatchStatus>;
}
