// The list of batches: filters, pages that stay as they are while new batches arrive, and actions.

import { get, poll } from './api.js';
import { foreign, h, render, sync, write } from './dom.js';
import { batchState, brief, compact, count, duration, finished, isOver, moment, num, rate, withoutAnswer } from './format.js';
import { Rates, actionsFor, badge, doneShare, fileOf, note, outcomes, progressBar, progressText } from './parts.js';

const PAGE = 50;
const ROWS_MAX = 200; // on the first page, which grows while new batches arrive
const LOOK_MS = 3000;
const POOLS_MS = 15000; // this reads all open batches of all pools
const EMPTY_MS = 30000; // between two looks with filters that find nothing
const STATES = {
  '': ['All states', []],
  active: ['Open', ['planning', 'open', 'ending', 'unreadable']],
  completed: ['Completed', ['completed']],
  failed: ['Failed', ['failed', 'input_changed', 'damaged']],
  canceled: ['Canceled', ['canceled']],
  expired: ['Expired', ['expired']],
};
const AGES = { '': 'Any age', '1h': 'Last hour', '24h': 'Last 24 hours', '7d': 'Last 7 days' };
const AGE_S = { '1h': 3600, '24h': 86400, '7d': 604800 };

export function batchesView(root, { params, signal, go }) {
  const filters = { state: params.get('state') ?? '', stage: params.get('stage') ?? '', age: params.get('age') ?? '' };
  const isFiltered = Object.values(filters).some(Boolean);
  const cursors = [null]; // of the pages up to this one
  const rates = new Rates();
  const inView = new Set();
  let rows = []; // statuses, in the order in which they are shown
  let page = { next: null };
  let arrived = [];
  let lookedAt = 0;
  let newest = null; // the newest batch that was seen, which need not fit the filters
  let era = 0; // answers to questions of an earlier one are stale
  let isTurning = false;

  const body = h('tbody');
  const table = h('table', { class: 'batches' },
    h('caption', { class: 'unseen', text: 'Batches, newest first' }),
    h('thead', {}, h('tr', {}, ['State', 'Batch', 'Progress', 'Rate', 'Left', 'Age', 'Priority', 'Actions'].map((name) =>
      h('th', { scope: 'col', class: ['Rate', 'Left', 'Age', 'Priority'].includes(name) ? 'right' : null, text: name })))),
    body);
  const message = h('div', { class: 'empty', role: 'status' });
  const fresh = h('button', { type: 'button', class: 'fresh', hidden: true, on: { click: () => { takeArrived(); scrollTo(0, 0); } } });
  const older = h('button', { type: 'button', text: 'Older', on: { click: () => turn(1) } });
  const newer = h('button', { type: 'button', text: 'Newer', on: { click: () => turn(-1) } });
  const where = h('span', { class: 'quiet', role: 'status' });
  const summary = h('dl', { class: 'facts summary', 'aria-label': 'The service now' });
  const problems = h('div', { class: 'notes' });
  const stage = h('select', { id: 'f-stage' }, h('option', { value: '', text: 'All stages' }), filters.stage && h('option', { value: filters.stage, text: filters.stage }));
  const state = options('f-state', Object.entries(STATES).map(([value, [label]]) => [value, label]));
  const age = options('f-age', Object.entries(AGES));
  [state.value, stage.value, age.value] = [filters.state, filters.stage, filters.age];
  const apply = () => go(`#/?${new URLSearchParams(Object.entries({ state: state.value, stage: stage.value, age: age.value }).filter(([, value]) => value))}`);
  for (const one of [state, stage, age]) one.addEventListener('change', apply);

  root.append(h('div', { class: 'head' }, h('h1', { tabindex: '-1', text: 'Batches' }), h('a', { class: 'button primary', href: '#/submit', text: 'New batch' })),
    summary, problems,
    h('form', { class: 'filters', role: 'search', 'aria-label': 'Filter batches', on: { submit: (event) => event.preventDefault() } },
      labeled('State', state), labeled('Stage', stage), labeled('Age', age),
      isFiltered && h('a', { href: '#/', text: 'Clear' })),
    fresh, table, message,
    h('nav', { class: 'pages', 'aria-label': 'Pages' }, newer, where, older));

  const seen = new IntersectionObserver((entries) => entries.forEach((entry) =>
    entry.isIntersecting ? inView.add(entry.target.dataset.id) : inView.delete(entry.target.dataset.id)), { rootMargin: '200px' });

  const query = () => ({
    limit: PAGE, after: cursors.at(-1), stage: filters.stage, state: STATES[filters.state]?.[1] ?? [],
    since: AGE_S[filters.age] ? Math.floor(Date.now() / 60000) * 60 - AGE_S[filters.age] : undefined,
  });

  async function load() {
    const own = ++era;
    const found = await get('batches', query(), signal);
    if (own !== era) return;
    era += 1;
    page = found;
    newest = null;
    lookedAt = Date.now();
    rows = page.data;
    arrived = [];
    for (const batch of rows) rates.see(batch);
    show();
  }

  async function refresh() {
    if (isTurning) return undefined;
    const own = era;
    if (!rows.length) return Date.now() - lookedAt < (isFiltered ? EMPTY_MS : 0) ? undefined : load();
    const wanted = rows.filter((batch) => !isOver(batch) && inView.has(batch.id)).map((batch) => batch.id);
    if (wanted.length) {
      const known = new Map((await get('batches', { id: wanted }, signal)).data.map((batch) => [batch.id, batch]));
      if (own !== era) return undefined;
      const asked = new Set(wanted);
      rows = rows.filter((batch) => !asked.has(batch.id) || known.has(batch.id)).map((batch) => known.get(batch.id) ?? batch);
      for (const batch of known.values()) rates.see(batch);
    }
    if (cursors.length === 1 && rows.length) await lookForNew();
    if (own === era) show();
    return undefined;
  }

  async function lookForNew() {
    const own = era;
    try {
      const found = (await get('batches', { before: newest ?? rows[0].id, limit: PAGE }, signal)).data;
      if (own !== era) return undefined;
      newest = found[0]?.id ?? newest;
      arrived = [...found.filter(fits), ...arrived];
    } catch (error) {
      if (error.status !== 404) throw error;
      return load(); // it was deleted
    }
    const isReading = scrollY > 120 || body.contains(document.activeElement);
    if (arrived.length && !isReading && rows.length + arrived.length <= ROWS_MAX) takeArrived();
    return undefined;
  }

  function takeArrived() {
    if (rows.length + arrived.length > ROWS_MAX) {
      load().catch(() => {});
      return;
    }
    rows = [...arrived, ...rows];
    arrived = [];
    show();
  }

  function fits(batch) {
    const states = STATES[filters.state]?.[1] ?? [];
    return (!states.length || states.includes(batch.state) || states.includes(batch.reason)) && (!filters.stage || batch.stage === filters.stage);
  }

  async function turn(by) {
    if (isTurning) return;
    isTurning = true;
    const before = [...cursors];
    if (by > 0) cursors.push(page.next);
    else cursors.pop();
    try {
      await load();
      scrollTo(0, 0);
      root.querySelector('h1').focus();
    } catch {
      cursors.splice(0, Infinity, ...before);
    } finally {
      isTurning = false;
    }
  }

  function changed(id, batch) {
    era += 1;
    rows = batch ? rows.map((one) => (one.id === id ? batch : one)) : rows.filter((one) => one.id !== id);
    show();
  }

  function show() {
    sync(body, rows, (batch) => batch.id, make, update);
    table.hidden = !rows.length;
    render(message, [rows.length, page.has_more, isFiltered], () => rows.length ? [] : empty());
    fresh.hidden = !arrived.length;
    write(fresh, `Show ${count(arrived.length, 'new batch')}`);
    newer.hidden = cursors.length === 1;
    older.hidden = !page.has_more;
    write(where, cursors.length > 1 || page.has_more ? `Page ${cursors.length}` : '');
  }

  function empty() {
    if (isFiltered) return [h('p', { text: page.has_more ? 'No such batch among the newest 1,000.' : 'No batch fits these filters.' }), page.has_more ? h('button', { type: 'button', text: 'Look further', on: { click: () => turn(1) } }) : h('a', { href: '#/', text: 'Show all batches' })];
    return [h('h2', { text: 'No batches yet' }), h('p', { text: 'Drop a file of requests, a table or a text, and see what it becomes.' }), h('a', { class: 'button primary', href: '#/submit', text: 'Try it' })];
  }

  function make(batch) {
    const cell = (name, ...children) => h('td', { class: name, 'data-label': name }, children);
    const row = h('tr', { 'data-id': batch.id }, cell('state'),
      cell('batch', h('a', { href: `#/batch/${encodeURIComponent(batch.id)}` }, foreign(batch.id)), h('div', { class: 'quiet about' })),
      cell('progress'), cell('rate'), cell('left'), cell('age'), cell('priority'), cell('actions'));
    seen.observe(row);
    inView.add(batch.id);
    return row;
  }

  function update(row, batch) {
    const [state, name, progress, speed, left, age, priority, actions] = row.children;
    const shown = batchState(batch);
    render(state, shown, () => badge(shown));
    render(name.lastChild, [batch.stage, fileOf(batch), batch.detail], () => [batch.stage, fileOf(batch), batch.detail].filter(Boolean).map((text) => foreign(text)).flatMap((node, at) => (at ? [' · ', node] : [node])));
    const failed = withoutAnswer(batch);
    render(progress, [finished(batch), batch.total, outcomes(batch)], () => [
      h('div', { class: 'over' }, h('span', { text: progressText(batch) }), failed ? h('span', { class: 'bad', text: `${compact(failed)} without an answer` }) : h('span', { class: 'quiet', text: doneShare(batch) })),
      progressBar(batch)]);
    const why = batch.waiting_for.map((one) => one.message).join('; ');
    row.title = why;
    write(speed, shown === 'running' || isOver(batch) ? rate(rates.of(batch)) : '–');
    const seconds = rates.left(batch);
    write(left, seconds === null ? (shown === 'waiting' ? 'blocked' : '–') : brief(seconds));
    write(age, brief(Date.now() / 1000 - batch.created_at));
    age.title = moment(batch.created_at);
    write(priority, String(batch.priority));
    render(actions, [batch.state, failed > 0, finished(batch) === batch.total], () => actionsFor(() => rows.find((one) => one.id === batch.id) ?? batch, (next) => changed(batch.id, next)));
  }

  async function lookAtPools() {
    const [pools, runners] = await Promise.all([get('pools', {}, signal), get('runners', {}, signal)]);
    const total = (list, name) => list.reduce((sum, one) => sum + one[name], 0);
    const pending = total(pools, 'pending_requests');
    render(summary, [pending, runners.map((one) => [one.requests_per_s, one.output_tokens_per_s])], () => [
      fact2('Requests waiting', compact(pending)),
      fact2('Live runners', num(runners.length)), fact2('Requests', rate(total(runners, 'requests_per_s'))),
      fact2('Output tokens', rate(total(runners, 'output_tokens_per_s')))]);
    const stuck = pools.filter((pool) => pool.problem && pool.pending_requests > 0);
    render(problems, stuck.map((pool) => [pool.problem.message, pool.pending_requests]), () => stuck.map((pool) =>
      note(pool.problem.cause === 'loading' ? 'amber' : 'red', `${pool.problem.message}. ${count(pool.pending_requests, 'request')} ${pool.pending_requests === 1 ? 'waits' : 'wait'}.`)));
    const names = [...new Set(pools.flatMap((pool) => pool.stages))].sort();
    render(stage, names, () => ['', ...new Set([...names, filters.stage].filter(Boolean))].map((name) => h('option', { value: name, selected: name === filters.stage, text: name || 'All stages' })));
  }

  poll(refresh, LOOK_MS, signal);
  poll(lookAtPools, POOLS_MS, signal);
  signal.addEventListener('abort', () => seen.disconnect());
  return 'Batches';
}

const fact2 = (label, value) => h('div', { class: 'fact' }, h('dt', { text: label }), h('dd', { text: value }));
const labeled = (label, control) => h('div', { class: 'field' }, h('label', { for: control.id, text: label }), control);
const options = (id, pairs) => h('select', { id }, pairs.map(([value, label]) => h('option', { value, text: label })));
