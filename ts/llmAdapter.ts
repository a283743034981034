/**
 * The entry point: plain functions for the service at LOCAL_BATCH_URL (with LOCAL_BATCH_API_KEY), and other exports.
 * Both variables are read at each call.
 */

import { createLocalClient } from './localClient.js';

export const { createBatch, getBatchStatus, getBatchResults, streamBatchResults, waitForBatch } = createLocalClient();

export { createBatchRouter, type BatchRouter, type RouterOptions } from './batchRouter.js';
export { isInCanary, leadIdOf, readSwitches, type Switches } from './canary.js';
export type { Clock } from './clock.js';
export { BatchConnectionError, BatchError, BatchHttpError, BatchTimeoutError, isTransient } from './errors.js';
export { createHostedClient, type HostedBatches, type HostedClientOptions } from './hostedClient.js';
export { createLocalClient, type LocalClientOptions } from './localClient.js';
export type * from './types.js';
