/**
 * A module for your application, with both sides behind it. The whole swap is `batches`: call it instead of
 * `anthropic.messages.batches`; `processBatchResults` stays unchanged. It reads USE_LOCAL_LLM, LOCAL_LLM_CANARY,
 * LOCAL_BATCH_URL and LOCAL_BATCH_API_KEY, and for the hosted side ANTHROPIC_API_KEY. Needs @anthropic-ai/sdk.
 */

import {
  BatchTimeoutError,
  createBatchRouter,
  createHostedClient,
  createLocalClient,
  type BatchRequest,
  type BatchResult,
  type HostedBatches,
  type Stage,
} from '@batchfile/adapter';

const HOSTED_MODELS: Record<string, string> = {
  sales_intel: 'claude-sonnet-5-5',
  subject: 'claude-haiku-5-5',
  email: 'claude-haiku-5-5',
  polish: 'claude-sonnet-5-5',
};

export const batches = createBatchRouter({
  local: createLocalClient(),
  hosted: createHostedClient({
    batches: lazyHosted(),
    model: (stage) => HOSTED_MODELS[stage] ?? 'claude-sonnet-5-5',
    sampling: 'drop', // this SDK's API version rejects temperature
  }),
});

/** Loads the SDK with the first hosted request, so that an all-local application needs no hosted key. */
function lazyHosted(): HostedBatches {
  let loaded: Promise<HostedBatches> | undefined;
  const hosted = (): Promise<HostedBatches> => {
    loaded ??= import('@anthropic-ai/sdk').then(({ default: Anthropic }) => new Anthropic().messages.batches);
    return loaded;
  };
  return {
    create: async (body) => (await hosted()).create(body),
    retrieve: async (id) => (await hosted()).retrieve(id),
    results: async (id) => (await hosted()).results(id),
  };
}

export interface Lead {
  id: string;
  accountId: string;
  notes: string;
}

function toRequest(lead: Lead, stage: Stage): BatchRequest {
  return {
    custom_id: `lead_${lead.id}_${stage}`,
    params: {
      system: 'You write sales intelligence reports.',
      messages: [{ role: 'user', content: lead.notes }],
      max_tokens: 2048,
      temperature: 0.2,
    },
    metadata: { leadId: lead.id, accountId: lead.accountId },
  };
}

/** Runs one stage for all leads and passes on every result. Store the id: another process can resume with it. */
export async function runStage(
  stage: Stage,
  leads: readonly Lead[],
  processBatchResults: (results: BatchResult[]) => Promise<void>,
): Promise<void> {
  const { id } = await batches.createBatch(
    stage,
    leads.map((lead) => toRequest(lead, stage)),
  );
  for (;;) {
    try {
      await batches.waitForBatch(id, 30 * 60 * 1000, {
        onProgress: ({ counts }) => console.log(`${id}: ${counts.total - counts.pending} of ${counts.total}`),
      });
      break;
    } catch (error) {
      if (!(error instanceof BatchTimeoutError)) throw error;
      console.warn(error.message); // the hosted side may take hours
    }
  }
  const { results } = await batches.getBatchResults(id);
  await processBatchResults(results);
}
