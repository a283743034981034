/** The golden exchanges that pytest holds against the real service. */

import { readFileSync } from 'node:fs';

import { json, type Reply } from './fakeServer.js';

const FOLDER = new URL('../../../tests/golden/stage/', import.meta.url);

export interface Exchange {
  request: { method: string; path: string; headers?: Record<string, string>; body?: any };
  response: { status: number; body: any };
}

export function golden(name: string): Exchange {
  return JSON.parse(goldenText(`${name}.json`));
}

export function goldenText(file: string): string {
  return readFileSync(new URL(file, FOLDER), 'utf8');
}

export function goldenReply(name: string): Reply {
  const { status, body } = golden(name).response;
  return json(status, body);
}
