// What several views show: states, bars, notes, dialogs, and the actions on a batch.

import { ApiError, post, remove } from './api.js';
import { foreign, h, s } from './dom.js';
import { batchState, count, finished, isOver, num, share, stateOf, withoutAnswer } from './format.js';

export function badge(name) {
  const [label, color, what] = stateOf(name);
  return h('span', { class: `badge ${color}`, title: what, text: label });
}

const OUTCOMES = [
  ['succeeded', 'succeeded', 'green'],
  ['failed', 'failed', 'red'],
  ['rejected', 'rejected', 'violet'],
  ['canceled', 'canceled', 'gray'],
  ['expired', 'expired', 'amber'],
];

/** Requests by how they ended: rejected ones never ran, failed ones ran without a valid answer. */
export function outcomes(batch) {
  const counts = { ...batch, failed: batch.errored - batch.rejected };
  return OUTCOMES.map(([key, label, color]) => ({ label, color, value: counts[key] })).filter((one) => one.value > 0);
}

export function progressBar(batch) {
  const done = finished(batch);
  const words = outcomes(batch).map((one) => `${num(one.value)} ${one.label}`);
  const bar = h('div', { class: 'bar', role: 'img', 'aria-label': `${num(done)} of ${num(batch.total)} requests: ${words.join(', ') || 'none finished'}` });
  for (const one of outcomes(batch)) {
    const part = h('span', { class: one.color });
    part.style.flexGrow = one.value;
    bar.append(part);
  }
  const rest = h('span', { class: 'rest' });
  rest.style.flexGrow = Math.max(0, batch.total - done) || (done ? 0 : 1);
  bar.append(rest);
  return bar;
}

export const progressText = (batch) => (batch.total ? `${num(finished(batch))} / ${num(batch.total)}` : '–');
export const doneShare = (batch) => (batch.total ? share(Math.floor((finished(batch) / batch.total) * 100) / 100) : '');

/** The file it was made of, if that is known. */
export const fileOf = (batch) => batch.metadata.file || (batch.inbox_path ?? batch.metadata.output ?? '').split('/').pop();

export function note(kind, text, word = { red: 'Problem', amber: 'Waiting', quiet: 'Note' }[kind]) {
  return h('p', { class: `note ${kind}` }, h('strong', { text: word }), ' ', foreign(text));
}

export function fact(label, value, hint = '', more = '') {
  return h('div', { class: 'fact', title: hint || null }, h('dt', { text: label }), h('dd', {}, value, more && h('div', { class: 'quiet', text: more })));
}

/** A line over time, for people who see it; `label` says it in words. */
export function chart(values, label, { width = 600, height = 72 } = {}) {
  const top = Math.max(...values, 1e-9);
  const x = (at) => ((at / Math.max(1, values.length - 1)) * width).toFixed(1);
  const y = (value) => (height - 2 - (value / top) * (height - 6)).toFixed(1);
  const line = values.map((value, at) => `${x(at)},${y(value)}`).join(' ');
  return s('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
    s('polygon', { points: `0,${height} ${line} ${width},${height}`, class: 'area' }),
    s('polyline', { points: line, class: 'line' }));
}

export function toast(text, link = null) {
  const item = h('div', { class: 'toast' }, h('span', {}, foreign(text)), link && h('a', { href: link.href, text: link.text }));
  item.append(h('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss', text: '×', on: { click: () => item.remove() } }));
  document.getElementById('toasts').append(item);
  setTimeout(() => item.remove(), 12000);
}

export function confirm({ title, text, yes, keep = 'Keep it' }) {
  const dialog = document.getElementById('confirm');
  document.getElementById('confirm-title').textContent = title;
  document.getElementById('confirm-text').replaceChildren(foreign(text));
  document.getElementById('confirm-yes').textContent = yes;
  document.getElementById('confirm-yes').className = 'danger';
  dialog.querySelector('button[value=no]').textContent = keep;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }));
}

/** What can be done with a batch, which `now()` returns. `done(batch)` gets its new status, or null once it is deleted. */
export function actionsFor(now, done) {
  const batch = now();
  const place = `batches/${encodeURIComponent(batch.id)}`;
  const act = (label, what, run, kind = '') => h('button', {
    type: 'button', class: kind, text: label, 'aria-label': `${label}: ${batch.id}`,
    on: { click: (event) => attempt(event.currentTarget, what, run) },
  });
  const cancel = async () => {
    const text = `${batch.id}: ${count(now().total - finished(now()), 'request')} will not run. Finished requests keep their results.`;
    if (!(await confirm({ title: 'Cancel this batch?', text, yes: 'Cancel the batch', keep: 'Keep it running' }))) return;
    done(await post(`${place}/cancel`));
    toast(`${batch.id} is canceled.`);
  };
  const rerun = async () => {
    const made = await post(`${place}/retry`);
    toast(`A batch of ${count(made.total, 'request')} was created:`, { href: `#/batch/${encodeURIComponent(made.id)}`, text: made.id });
  };
  const erase = async () => {
    const text = `${batch.id}: nobody can read it or its results any more. This cannot be undone.`;
    if (!(await confirm({ title: 'Delete this batch?', text, yes: 'Delete the batch' }))) return;
    await remove(place);
    toast(`${batch.id} was deleted.`);
    done(null);
  };
  if (!isOver(batch)) return batchState(batch) === 'ending' ? [] : [act('Cancel', 'cancel it', cancel)];
  const canRerun = batch.state === 'ended' && withoutAnswer(batch) > 0;
  return [canRerun && act('Rerun failed', 'rerun it', rerun), act('Delete', 'delete it', erase)].filter(Boolean);
}

/** Runs an action of a button once at a time, and says why it failed. */
export async function attempt(button, what, run) {
  button.disabled = true;
  try {
    await run();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    toast(`Could not ${what}: ${error.message}`);
  } finally {
    button.disabled = false;
    if (document.activeElement === document.body) (button.isConnected ? button : document.querySelector('h1'))?.focus();
  }
}

/** Rates from what was seen in the last minute; before that, the average since the creation. */
export class Rates {
  constructor() {
    this.points = new Map();
  }

  see(batch, now = performance.now() / 1000) {
    const points = this.points.get(batch.id) ?? [];
    this.points.set(batch.id, points);
    points.push([now, finished(batch)]);
    while (points.length > 2 && points[0][0] < now - 60) points.shift();
  }

  of(batch) {
    const points = this.points.get(batch.id) ?? [];
    const [first, last] = [points[0], points.at(-1)];
    if (!isOver(batch) && last && last[0] - first[0] >= 5) return Math.max(0, (last[1] - first[1]) / (last[0] - first[0]));
    const lasted = (batch.ended_at ?? batch.updated_at) - batch.created_at;
    return lasted > 0 ? (batch.succeeded + batch.errored) / lasted : 0; // canceled and expired ones took no time
  }

  /** Seconds until its requests are done; null if nothing moves. */
  left(batch) {
    const rate = this.of(batch);
    return isOver(batch) || !rate || batch.waiting_for.length ? null : (batch.total - finished(batch)) / rate;
  }
}
