import assert from 'node:assert/strict';
import { test } from 'node:test';

import { RequestLines, splitLines, type Line } from '../lines.js';
import type { BatchRequest } from '../llmAdapter.js';

async function* pieces(bytes: Buffer, size: number): AsyncGenerator<Uint8Array> {
  for (let start = 0; start < bytes.length; start += size) yield bytes.subarray(start, start + size);
}

async function split(text: string, size: number): Promise<Line[]> {
  const lines: Line[] = [];
  for await (const line of splitLines(pieces(Buffer.from(text), size))) lines.push(line);
  return lines;
}

test('lines are the same however the bytes are cut, and only a newline ends one', async () => {
  const text = '{"a":"☕ \u2028 é"}\n\n{"b":"\r 𝄞"}\n{"c":1}';
  const expected = [
    { text: '{"a":"☕ \u2028 é"}', isTerminated: true },
    { text: '{"b":"\r 𝄞"}', isTerminated: true },
    { text: '{"c":1}', isTerminated: false },
  ];
  for (let size = 1; size <= text.length + 8; size++) assert.deepEqual(await split(text, size), expected);
});

test('nothing has no lines', async () => {
  assert.deepEqual(await split('', 1), []);
  assert.deepEqual(await split('\n\n', 1), []);
});

test('requests become lines, read no faster than they are sent', async () => {
  let numMade = 0;
  async function* make(): AsyncGenerator<BatchRequest> {
    for (; numMade < 10_000; numMade++) yield { custom_id: `lead_${numMade}`, params: { messages: [] } };
  }
  const reader = new RequestLines(make()).stream.getReader();
  const first = await reader.read();
  assert.ok(numMade < 5_000, `${numMade} requests were made before the second read`);
  let text = Buffer.from(first.value!).toString();
  for (let next = await reader.read(); !next.done; next = await reader.read())
    text += Buffer.from(next.value).toString();
  const lines = text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as BatchRequest);
  assert.equal(lines.length, 10_000);
  assert.equal(lines[9_999]?.custom_id, 'lead_9999');
});
