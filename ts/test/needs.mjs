/** Says what the tests need, where it is missing: `npm test` of the published package has neither. */

import { existsSync } from 'node:fs';

const NEEDS = [
  ['../../tests/golden/stage', 'the recorded exchanges of the service: run them in ts/ of a checkout of batchfile'],
  ['../node_modules/typescript', 'TypeScript and the Anthropic SDK: run `npm ci` first'],
];

for (const [path, what] of NEEDS) {
  if (existsSync(new URL(path, import.meta.url))) continue;
  console.error(`The tests of @batchfile/adapter need ${what}.`);
  process.exit(1);
}
