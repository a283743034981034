/** Decides which side a lead goes to. Pure except for reading the environment. */

import { createHash } from 'node:crypto';

import { BatchError } from './errors.js';
import type { BatchRequest, Stage } from './types.js';

export interface Switches {
  useLocal: boolean;
  /** 0..100: the share of leads that go to the local service while `useLocal` is on. Fractions are allowed. */
  canaryPercent: number;
}

const ON = new Set(['1', 'true', 'yes', 'on']);
const OFF = new Set(['', '0', 'false', 'no', 'off']);

/** USE_LOCAL_LLM (default: off) and LOCAL_LLM_CANARY (default: 100). */
export function readSwitches(env: Record<string, string | undefined> = process.env): Switches {
  const use = (env['USE_LOCAL_LLM'] ?? '').trim().toLowerCase();
  if (!ON.has(use) && !OFF.has(use)) {
    throw new BatchError(`USE_LOCAL_LLM: "${use}" is not valid; use true or false.`);
  }
  const share = env['LOCAL_LLM_CANARY']?.trim() || '100';
  const canaryPercent = Number.parseFloat(share);
  if (!/^\d+(\.\d+)?\s*%?$/.test(share) || canaryPercent > 100) {
    throw new BatchError(`LOCAL_LLM_CANARY: "${share}" is not valid; use a number from 0 to 100.`);
  }
  return { useLocal: ON.has(use), canaryPercent };
}

/** `metadata.leadId` (12 equals "12"), else the middle of `lead_{leadId}_{stage}`, else the whole custom_id. */
export function leadIdOf(request: BatchRequest, stage: Stage): string {
  const lead: unknown = request.metadata?.leadId;
  if (typeof lead === 'number' || (typeof lead === 'string' && lead)) return String(lead);
  const [head, tail] = ['lead_', `_${stage}`];
  const id = request.custom_id;
  const isUsual = id.startsWith(head) && id.endsWith(tail) && id.length > head.length + tail.length;
  return isUsual ? id.slice(head.length, -tail.length) : id;
}

/** A lead always gets the same answer, in every stage and process; a larger share only adds leads. */
export function isInCanary(leadId: string, percent: number): boolean {
  const place = createHash('sha256').update(leadId).digest().readUInt32BE(0) / 2 ** 32;
  return place * 100 < percent;
}
