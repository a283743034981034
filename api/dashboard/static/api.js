// Talks to /api. The key stays in this tab. A GET sends the ETag of the last answer, and gets that answer again on a 304.

const KEY = 'batchfile.key';
const ANSWERS_MAX = 64;
const GET_MS_MAX = 30000; // a connection that is lost without a word
const answers = new Map();

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  /** The service or its store is unavailable: it is worth trying again. */
  get isAway() {
    return this.status === 0 || this.status === 429 || this.status >= 502;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export function keep(key) {
  answers.clear();
  if (key === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

const listeners = { health: [], key: [] };
export const onHealth = (listener) => listeners.health.push(listener);
export const onKeyNeeded = (listener) => listeners.key.push(listener);
const tell = (name, ...told) => listeners[name].forEach((listener) => listener(...told));

function url(path, query = {}) {
  const pairs = Object.entries(query).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  const given = pairs.filter(([, value]) => value !== undefined && value !== null && value !== '');
  return `api/${path}${given.length ? `?${new URLSearchParams(given)}` : ''}`;
}

async function ask(path, { query, method = 'GET', headers = {}, body, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  let response;
  try {
    const more = key === null ? {} : { Authorization: `Bearer ${key}` };
    response = await fetch(url(path, query), { method, headers: { ...headers, ...more }, body, signal, cache: 'no-store' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    if (body instanceof Blob && !(await body.slice(0, 1).arrayBuffer().then(() => true, () => false))) {
      throw new ApiError(400, 'The file cannot be read: it is a folder, or it was changed or moved. Choose it again.');
    }
    const refusal = new ApiError(0, 'The service does not answer.');
    tell('health', refusal);
    throw refusal;
  }
  if (response.ok || response.status === 304) {
    tell('health', null);
    return response;
  }
  const refusal = new ApiError(response.status, await detailOf(response));
  if (response.status === 401 && key === sessionStorage.getItem(KEY)) tell('key', hasKey()); // else another key was entered since
  const isOurs = response.status === 403 || (response.status >= 500); // not about what was asked for
  tell('health', isOurs ? refusal : null);
  throw refusal;
}

async function detailOf(response) {
  try {
    const said = await response.json();
    return said.detail ?? said.error?.message ?? `The service answered ${response.status}.`;
  } catch {
    return `The service answered ${response.status}.`;
  }
}

export async function get(path, query, signal) {
  const place = url(path, query);
  const known = answers.get(place);
  const key = sessionStorage.getItem(KEY);
  const limit = AbortSignal.timeout(GET_MS_MAX);
  const response = await ask(path, { query, signal: signal ? AbortSignal.any([signal, limit]) : limit, headers: known ? { 'If-None-Match': known.etag } : {} });
  if (response.status === 304 && known) return known.data;
  const data = await response.json();
  const etag = response.headers.get('etag');
  if (etag && key === sessionStorage.getItem(KEY)) {
    answers.delete(place);
    answers.set(place, { etag, data });
    if (answers.size > ANSWERS_MAX) answers.delete(answers.keys().next().value);
  }
  return data;
}

export async function post(path, { query, body, type = 'application/x-ndjson', signal } = {}) {
  const headers = { 'Idempotency-Key': randomName(), ...(body === undefined ? {} : { 'Content-Type': type }) };
  return (await ask(path, { method: 'POST', query, body, headers, signal })).json();
}

export async function postForBlob(path, { query, body } = {}) {
  return (await ask(path, { method: 'POST', query, body, headers: { 'Content-Type': 'application/octet-stream' } })).blob();
}

/** Differs once the service has another version of this page. */
export const versionTag = async () => (await ask('../dashboard/app.js', { method: 'HEAD' })).headers.get('etag');

export const remove = async (path) => (await ask(path, { method: 'DELETE' })).json();

/** Saves a file: directly where no key is needed, else through this page, which alone can send the key. */
export async function download(path, query, name) {
  let href = url(path, query);
  let blob = null;
  if (hasKey()) {
    blob = await (await ask(path, { query })).blob();
    href = URL.createObjectURL(blob);
  }
  const link = document.createElement('a');
  link.href = href;
  link.download = name;
  link.click();
  if (blob) setTimeout(() => URL.revokeObjectURL(href), 60000);
}

function randomName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

const WAIT_MS_MAX = 15000;

/** Calls `look` again and again until `signal` aborts: not while the tab is hidden, and more and more rarely if it fails. */
export function poll(look, everyMs, signal) {
  let timer = 0;
  let isLooking = false;
  let num = 0;
  const again = (ms) => {
    clearTimeout(timer);
    if (!signal.aborted && !document.hidden) timer = setTimeout(run, ms);
  };
  async function run() {
    if (isLooking || signal.aborted) return;
    isLooking = true;
    let wait = everyMs;
    try {
      await look();
      num = 0;
    } catch (error) {
      if (error.name === 'AbortError') return;
      if (!(error instanceof ApiError)) console.error(error);
      num += 1;
      wait = error.status === 401 ? WAIT_MS_MAX : Math.min(WAIT_MS_MAX, everyMs * 2 ** Math.min(num - 1, 4));
    } finally {
      isLooking = false;
    }
    again(wait);
  }
  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : run()), { signal });
  addEventListener('online', () => again(0), { signal });
  addEventListener('batchfile:key', () => again(0), { signal });
  signal.addEventListener('abort', () => clearTimeout(timer));
  run();
  return () => again(0);
}
