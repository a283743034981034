// The frame: which view is shown, the key, and whether the service answers.

import { ApiError, hasKey, keep, onHealth, onKeyNeeded, poll, versionTag } from './api.js';
import { write } from './dom.js';
import { batchView } from './batch.js';
import { batchesView } from './batches.js';
import { poolsView } from './pools.js';
import { submitView } from './submit.js';

const main = document.getElementById('main');
const live = document.getElementById('live');
const banner = document.getElementById('banner');
const keyDialog = document.getElementById('key');
const keyInput = document.getElementById('key-input');
const keyProblem = document.getElementById('key-problem');
let leaving = new AbortController();
let isFirst = true;
const VERSION_MS = 30000;

function show() {
  leaving.abort();
  leaving = new AbortController();
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const [view, ...rest] = path.split('/');
  const context = { id: decode(rest.join('/')), params: new URLSearchParams(query), signal: leaving.signal, go: (hash) => { location.hash = hash; } };
  const make = { '': batchesView, batch: batchView, pools: poolsView, submit: submitView }[view] ?? batchesView;
  const held = document.activeElement?.id; // such as a filter, which the next view has too
  main.replaceChildren();
  document.title = `${make(main, context)} · batchfile`;
  for (const link of document.querySelectorAll('header nav a')) {
    const own = link.getAttribute('href').slice(2);
    const isHere = own === view || (own === '' && view === 'batch');
    if (isHere) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (!isFirst) ((held && main.querySelector(`#${held}`)) || main.querySelector('h1'))?.focus();
  isFirst = false;
  scrollTo(0, 0);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

let lostAt = 0;
onHealth((problem) => {
  live.className = `live ${problem ? 'red' : 'green'}`;
  write(live, problem ? 'Not connected' : 'Live');
  if (!problem) {
    if (lostAt) lookForVersion();
    lostAt = 0;
    banner.hidden = !isOutdated;
    if (isOutdated) showVersion();
    return;
  }
  lostAt = lostAt || Date.now();
  const since = new Date(lostAt).toLocaleTimeString();
  write(banner, `${problem.message} What you see is from before ${since}; this page keeps trying.`);
  banner.hidden = false;
});

/** A new version of the service may have a new version of this page. */
let ownTag = null;
let isOutdated = false;
function showVersion() {
  write(banner, 'The service was updated. Reload this page to get its new version.');
  banner.hidden = false;
}
const lookForVersion = poll(async () => { // also where a view has nothing to ask, so that its "Live" is true
  const tag = await versionTag();
  ownTag = ownTag ?? tag;
  isOutdated = tag !== ownTag;
  if (isOutdated) showVersion();
}, VERSION_MS, new AbortController().signal);

onKeyNeeded((wasGiven) => {
  if (keyDialog.open) return;
  keyProblem.hidden = !wasGiven;
  write(keyProblem, wasGiven ? 'The service does not accept this key. Check it, or ask its operator for another one.' : '');
  keyInput.value = '';
  keyDialog.showModal();
});
keyDialog.addEventListener('cancel', (event) => event.preventDefault());
document.getElementById('key-form').addEventListener('submit', (event) => {
  const given = keyInput.value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) { // no header can carry it
    event.preventDefault();
    write(keyProblem, 'A key has only letters, digits and signs of ASCII, and no spaces. Copy it again.');
    keyProblem.hidden = false;
    return;
  }
  keep(given);
  keyInput.value = '';
  setKeyButton();
  dispatchEvent(new Event('batchfile:key'));
});
const forget = document.getElementById('forget');
forget.addEventListener('click', () => {
  keep(null);
  setKeyButton();
  show();
});
const setKeyButton = () => { forget.hidden = !hasKey(); };
setKeyButton();

addEventListener('unhandledrejection', (event) => {
  if (event.reason instanceof ApiError || event.reason?.name === 'AbortError') event.preventDefault();
});
document.addEventListener('visibilitychange', () => { if (document.hidden) write(live, 'Paused'); });
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener('hashchange', show);
show();
