// Pools and their runners: what they do, how fast, and what is wrong with them.

import { get, poll } from './api.js';
import { foreign, h, render, sync } from './dom.js';
import { compact, count, duration, num, rate, share } from './format.js';
import { badge, fact, note } from './parts.js';

const LOOK_MS = 5000;
const POOLS_MS = 10000;
const HEADS = ['State', 'Runner', 'Version', 'In flight', 'Waiting', 'Requests', 'Tokens in', 'Tokens out', 'KV cache', 'Cache hits', 'Latency', 'GPU time', 'Up'];

export function poolsView(root, { signal }) {
  const list = h('div', { class: 'pools' });
  const empty = h('p', { class: 'quiet', role: 'status', text: 'Loading…' });
  let pools = [];
  let runners = [];
  root.append(h('div', { class: 'head' }, h('h1', { tabindex: '-1', text: 'Pools and runners' })), list, empty);

  poll(async () => {
    runners = await get('runners', {}, signal);
    show();
  }, LOOK_MS, signal);
  poll(async () => {
    pools = await get('pools', {}, signal);
    empty.hidden = true;
    show();
  }, POOLS_MS, signal);

  function show() {
    sync(list, pools, (pool) => pool.name, make, update);
  }

  function make(pool) {
    const body = h('tbody');
    const table = h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `Runners of ${pool.name}` },
      h('table', { class: 'small runners' }, h('thead', {}, h('tr', {}, HEADS.map((text, at) => h('th', { scope: 'col', class: at > 2 ? 'right' : null, text })))), body));
    return h('section', { class: 'card', 'aria-label': `Pool ${pool.name}` },
      h('div', { class: 'head' }, h('div', { class: 'title' }, h('h2', {}, foreign(pool.name)), h('span', { class: 'state' })), h('span', { class: 'quiet about' })),
      h('div', { class: 'notes' }), h('dl', { class: 'facts' }), table);
  }

  function update(card, pool) {
    const own = runners.filter((runner) => runner.pool === pool.name);
    const sum = (name) => own.reduce((total, one) => total + (one[name] ?? 0), 0);
    const [head, notes, facts, table] = card.children;
    const shown = own.length ? ['running', 'idle', 'draining', 'loading', 'down'].find((state) => own.some((one) => one.state === state)) : null;
    render(head.querySelector('.state'), shown, () => (shown ? badge(shown) : h('span', { class: `badge ${pool.pending_requests ? 'red' : 'quiet'}`, text: 'No runner' })));
    render(head.querySelector('.about'), [pool.model, pool.engine, pool.stages], () => [h('span', {}, foreign(pool.model)), h('span', { text: pool.engine }), pool.stages.length > 0 && h('span', {}, 'stages ', foreign(pool.stages.join(', ')))]);
    const problem = pool.problem;
    const kind = !problem ? '' : problem.cause === 'loading' ? 'amber' : pool.pending_requests || problem.cause === 'endpoint_down' ? 'red' : 'quiet';
    const waits = pool.pending_requests ? `. ${count(pool.pending_requests, 'request')} ${pool.pending_requests === 1 ? 'waits' : 'wait'} for it.` : '';
    render(notes, [problem?.message, kind, waits], () => (problem ? note(kind, problem.message + waits) : []));
    const perSecond = sum('requests_per_s');
    const input = own.reduce((total, one) => total + one.totals.input_tokens, 0);
    const cached = own.reduce((total, one) => total + one.totals.cached_tokens, 0);
    const left = !pool.pending_requests ? '–' : perSecond ? duration(pool.pending_requests / perSecond) : 'unknown';
    render(facts, [pool.pending_requests, pool.open_batches, own], () => [
      fact('Waiting', compact(pool.pending_requests), `${num(pool.pending_requests)} requests without a result`, `in ${count(pool.open_batches, 'batch')}`),
      fact('Time left', left, 'At the rate of its runners in the last minute'), fact('Runners', num(own.length)),
      ...(own.length ? [fact('Requests', rate(perSecond)), fact('Tokens in', rate(sum('input_tokens_per_s'))), fact('Tokens out', rate(sum('output_tokens_per_s'))),
      fact('Cache hits', input ? share(cached / input) : '–', 'The share of input tokens that the prefix cache served'),
      fact('GPU time', sum('gpu_s') ? duration(sum('gpu_s')) : '–', 'Of its live runners since their start')] : [])]);
    table.hidden = !own.length;
    sync(table.querySelector('tbody'), own, (runner) => runner.runner_id, () => h('tr', {}, HEADS.map((_, at) => h('td', { class: at > 2 ? 'right' : null }))), fillRow);
  }

  function fillRow(row, runner) {
    const latency = runner.latency_p50_s === null ? '–' : `${runner.latency_p50_s.toFixed(1)} / ${runner.latency_p95_s.toFixed(1)} s`;
    const cells = [
      null, null, `${runner.engine} ${runner.engine_version}`.trim(), `${num(runner.in_flight)} / ${num(runner.num_slots)}`, num(runner.waiting ?? 0), rate(runner.requests_per_s),
      rate(runner.input_tokens_per_s), rate(runner.output_tokens_per_s), runner.kv_use === null || runner.kv_use === undefined ? '–' : share(runner.kv_use),
      runner.totals.input_tokens ? share(runner.cache_hit_share) : '–', latency, runner.gpu_s ? duration(runner.gpu_s) : '–', duration(Date.now() / 1000 - runner.started_at),
    ];
    cells.forEach((text, at) => text !== null && row.children[at].textContent !== text && (row.children[at].textContent = text));
    render(row.children[0], [runner.state, runner.problem], () => [badge(runner.state), runner.problem && h('div', { class: 'bad', text: runner.problem })]);
    render(row.children[1], [runner.runner_id, runner.host], () => [foreign(runner.runner_id), runner.host && h('div', { class: 'quiet' }, foreign(runner.host))]);
  }
  return 'Pools and runners';
}
