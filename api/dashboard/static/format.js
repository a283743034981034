// Numbers, times and states as text.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat('en', { style: 'percent', maximumFractionDigits: 0 });

export const num = (value) => whole.format(value);
export const compact = (value) => (value < 10000 ? whole.format(value) : short.format(value));
export const share = (value) => percent.format(value);
export const money = (value) => `$${value < 1 ? value.toFixed(4) : value.toFixed(2)}`;
export const count = (value, noun) => `${num(value)} ${noun}${value === 1 ? '' : noun.endsWith('h') ? 'es' : 's'}`;

export function rate(perSecond, noun = '') {
  if (!perSecond) return '–';
  if (perSecond < 0.1) return `${tenth.format(perSecond * 60)}${noun}/min`;
  return `${perSecond < 100 ? tenth.format(perSecond) : compact(perSecond)}${noun}/s`;
}

export function bytes(size) {
  if (size < 1024) return `${size} B`;
  const [unit, per] = [['KiB', 1024], ['MiB', 1024 ** 2], ['GiB', 1024 ** 3]].findLast(([, one]) => size >= one);
  return `${tenth.format(size / per)} ${unit}`;
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s < 600 && s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.round(s / 60)} min`;
  if (s < 86400) return s % 3600 >= 60 ? `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min` : `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** In one unit, for tables. */
export function brief(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

export const moment = (epoch) => new Date(epoch * 1000).toLocaleString([], { dateStyle: 'medium', timeStyle: 'medium' });

const STATES = {
  planning: ['Planning', 'quiet', 'Its input is being read'],
  queued: ['Queued', 'quiet', 'No runner has started it yet'],
  running: ['Running', 'blue', 'Runners work on it'],
  waiting: ['Waiting', 'amber', 'It has work left, and no runner can do it now'],
  ending: ['Finishing', 'blue', 'Its results are being put together'],
  completed: ['Completed', 'green', 'All requests have a result'],
  partly: ['Completed', 'green', 'All requests have a result; some of them failed'],
  failed: ['Failed', 'red', 'It ended before it ran'],
  input_changed: ['Input changed', 'red', 'Its input was replaced while it ran'],
  canceled: ['Canceled', 'quiet', 'Somebody canceled it'],
  expired: ['Expired', 'amber', 'Its time was over before all requests had run'],
  damaged: ['Damaged', 'red', 'Its stored record is lost'],
  unreadable: ['Unreadable', 'amber', 'Its record cannot be read now'],
  loading: ['Loading', 'quiet', 'It loads the model'],
  idle: ['Idle', 'quiet', 'It waits for work'],
  draining: ['Draining', 'amber', 'It finishes what it holds and ends'],
  down: ['Down', 'red', 'Its endpoint is unavailable'],
};

/** A label, a color and a sentence for a state of a batch or a runner. */
export const stateOf = (name) => STATES[name] ?? [name, 'quiet', ''];

export function batchState(batch) {
  if (batch.state === 'ended') return batch.reason === 'completed' && batch.succeeded < batch.total ? 'partly' : (batch.reason ?? 'completed');
  if (batch.state !== 'open') return batch.state;
  if (batch.waiting_for.length) return 'waiting';
  const hasBegun = finished(batch) > 0 || Object.values(batch.pools).some((pool) => pool.shards_leased > 0);
  return hasBegun ? 'running' : 'queued';
}

export const isOver = (batch) => batch.state === 'ended' || batch.state === 'damaged';
export const finished = (batch) => batch.succeeded + batch.errored + batch.canceled + batch.expired;
export const withoutAnswer = (batch) => batch.errored + batch.canceled + batch.expired;
