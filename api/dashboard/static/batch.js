// One batch: its progress, shards, failures, latest results and downloads.

import { ApiError, download, get, poll } from './api.js';
import { folded, foreign, h, render, sync, write } from './dom.js';
import { batchState, bytes, compact, count, duration, finished, isOver, moment, money, num, rate, share, stateOf, withoutAnswer } from './format.js';
import { Rates, actionsFor, attempt, badge, chart, fact, fileOf, note, outcomes, progressBar } from './parts.js';

// Together fewer requests to the store than `batchfile watch` of one batch makes, which looks every second.
const LOOK_MS = 3000;
const SHARDS_MS = 5000;
const LATEST_MS = 10000;
const CELLS_MAX = 320; // of a strip; each stands for one or more shards
const GPU_HOUR = 'batchfile.gpu-hour'; // US dollars, of this tab
const COST = 'GPU cost';
const FORMATS = [
  ['native', 'batchfile', 'results.jsonl'], ['openai', 'OpenAI output file', 'openai-output.jsonl'], ['openai_errors', 'OpenAI error file', 'openai-errors.jsonl'],
  ['anthropic', 'Anthropic', 'anthropic.jsonl'], ['stage', 'Stage API', 'stage.jsonl'],
];

export function batchView(root, { id, signal, go }) {
  const place = `batches/${encodeURIComponent(id)}`;
  const rates = new Rates();
  let batch = null;
  let isGone = false;
  let soon = []; // to call once the batch is known

  const name = h('h1', { tabindex: '-1', class: 'id' }, foreign(id));
  const state = h('span', { class: 'state' });
  const about = h('p', { class: 'quiet about' });
  const actions = h('div', { class: 'actions' });
  const notes = h('div', { class: 'notes', 'aria-live': 'polite' });
  const progress = h('div', { class: 'big' });
  const facts = h('dl', { class: 'facts' });
  const cost = h('dd');
  const strips = h('div', { class: 'strips' });
  const flow = h('div');
  const failures = h('ul', { class: 'failures' });
  const latest = h('div', { class: 'results' });
  const latestTitle = h('h2', { text: 'Latest results' });
  const files = h('div', { class: 'files' });
  const details = h('dl', { class: 'pairs' });
  const sections = {
    shards: h('section', { 'aria-label': 'Shards', hidden: true }, h('h2', { text: 'Shards' }), strips),
    flow: h('section', { 'aria-label': 'Throughput', hidden: true }, h('h2', { text: 'Throughput' }), flow),
    failures: h('section', { 'aria-label': 'Failures', hidden: true }, h('h2', { text: 'Why requests failed' }), failures),
    latest: h('section', { 'aria-label': 'Results', hidden: true }, latestTitle, latest),
    files: h('section', { 'aria-label': 'Downloads', hidden: true }, h('h2', { text: 'Downloads' }), files),
    details: h('section', { 'aria-label': 'Details', hidden: true }, h('h2', { text: 'Details' }), details),
  };
  root.append(h('nav', { class: 'crumbs', 'aria-label': 'Breadcrumb' }, h('a', { href: '#/', text: 'Batches' })),
    h('div', { class: 'head' }, h('div', { class: 'title' }, name, state), actions), about, notes, progress, facts,
    h('div', { class: 'columns' }, sections.shards, sections.flow), sections.failures,
    h('div', { class: 'columns' }, sections.files, sections.details), sections.latest);

  async function look() {
    if (isGone || (batch && isOver(batch))) return;
    const before = batch;
    try {
      const found = await get(place, {}, signal);
      if (batch !== before) return; // canceled since
      batch = found;
    } catch (error) {
      if (!(error instanceof ApiError) || (error.status !== 404 && error.status !== 400)) throw error;
      isGone = true;
      root.replaceChildren(h('h1', { tabindex: '-1', text: 'No such batch' }), h('p', {}, foreign(id), ' does not exist, was deleted, or belongs to another tenant.'), h('a', { href: '#/', text: 'Show all batches' }));
      return;
    }
    rates.see(batch);
    show();
    soon.splice(0).forEach((look_) => look_());
  }

  function changed(next) {
    if (!next) return go('#/');
    batch = next;
    show();
  }

  function show() {
    const shown = batchState(batch);
    render(state, shown, () => badge(shown));
    document.title = `${stateOf(shown)[0]} · ${id} · batchfile`;
    render(about, [batch.stage, fileOf(batch), batch.created_at], () => [
      h('span', { text: `Created ${moment(batch.created_at)}` }), batch.stage && h('span', {}, 'stage ', foreign(batch.stage)), fileOf(batch) && h('span', {}, 'file ', foreign(fileOf(batch)))]);
    render(actions, [shown, withoutAnswer(batch) > 0], () => actionsFor(() => batch, changed));
    render(notes, [batch.waiting_for, batch.detail, batch.reuse_note], () => [
      ...batch.waiting_for.map((one) => note(one.cause === 'loading' ? 'amber' : 'red', one.message)),
      batch.detail && note(batch.state === 'ended' && batch.reason !== 'completed' ? 'red' : 'quiet', batch.detail),
      batch.reuse_note && note('quiet', batch.reuse_note)].filter(Boolean));
    showProgress();
    showFacts();
    showFailures();
    showFiles();
    showDetails();
  }

  function showProgress() {
    const done = finished(batch);
    render(progress, [done, batch.total, outcomes(batch)], () => [
      h('div', { class: 'over' }, h('strong', { text: batch.total ? `${num(done)} of ${count(batch.total, 'request')}` : 'Not counted yet' }), h('span', { text: batch.total ? share(Math.floor((done / batch.total) * 1000) / 1000) : '' })),
      progressBar(batch),
      h('ul', { class: 'legend' }, outcomes(batch).map((one) => h('li', { class: one.color, text: `${num(one.value)} ${one.label}` })),
        batch.total > done && h('li', { class: 'rest', text: `${num(batch.total - done)} to do` }))]);
  }

  function showFacts() {
    const speed = rates.of(batch);
    const left = rates.left(batch);
    const reused = Object.values(batch.reused).reduce((sum, one) => sum + one, 0);
    const lasted = (batch.ended_at ?? Date.now() / 1000) - batch.created_at;
    const hit = batch.input_tokens ? `${share(batch.cached_tokens / batch.input_tokens)} cached` : '';
    const shown = [
      [isOver(batch) ? 'Average rate' : 'Rate', rate(speed)], [isOver(batch) ? 'Took' : 'Age', duration(lasted)],
      !isOver(batch) && ['Time left', left === null ? '–' : duration(left)],
      ['Input tokens', compact(batch.input_tokens), `${num(batch.input_tokens)}, of which the prefix cache served ${num(batch.cached_tokens)}`, hit],
      ['Output tokens', compact(batch.output_tokens), num(batch.output_tokens)],
      batch.usage_unknown > 0 && ['Tokens unknown', count(batch.usage_unknown, 'result'), 'Their endpoint did not report tokens; the sums leave them out'],
      batch.gpu_s > 0 && ['GPU time', duration(batch.gpu_s), `${num(batch.gpu_s)} GPU seconds`],
      reused > 0 && ['Reused', count(reused, 'result'), 'Taken over from earlier batches; they cost nothing'],
      batch.gpu_s > 0 && [COST]].filter(Boolean);
    sync(facts, shown, ([label]) => label, ([label]) => (label === COST ? costFact() : h('div', { class: 'fact' })), (node, one) => {
      if (one[0] === COST) return node.tell();
      node.title = one[2] ?? '';
      return render(node, one, () => [...fact(...one).childNodes]);
    });
  }

  function costFact() {
    const input = h('input', { type: 'number', min: '0', step: '0.01', inputmode: 'decimal', placeholder: '$/h', 'aria-label': 'US dollars for one GPU hour', value: sessionStorage.getItem(GPU_HOUR) ?? '' });
    const tell = () => write(cost, Number(input.value) > 0 ? money((batch.gpu_s / 3600) * Number(input.value)) : 'per GPU hour:');
    input.addEventListener('input', () => {
      sessionStorage.setItem(GPU_HOUR, input.value);
      tell();
    });
    return Object.assign(h('div', { class: 'fact cost' }, h('dt', { text: COST }), cost, h('dd', {}, input)), { tell });
  }

  function showFailures() {
    sections.failures.hidden = !batch.failures.length;
    sync(failures, batch.failures, (one) => JSON.stringify([one.type, one.http_status, one.message]), (one) => h('li', {},
      h('div', { class: 'over' }, h('strong', { text: count(one.requests, 'request') }), h('code', {}, foreign(one.type)), one.http_status && h('span', { class: 'quiet', text: `HTTP ${one.http_status}` })),
      folded(one.message, { chars: 300, lines: 4, label: 'message' }),
      one.advice && h('p', { class: 'advice', text: one.advice }),
      h('details', {}, h('summary', { text: 'Example' }),
        h('p', { class: 'quiet' }, one.line !== null && `Line ${num(one.line)}`, one.custom_id !== null && ', custom_id ', one.custom_id !== null && foreign(one.custom_id)),
        folded(one.example || one.message, { label: 'example' }))),
    (item, one) => write(item.querySelector('strong'), count(one.requests, 'request')));
  }

  function showFiles() {
    const isEnded = batch.state === 'ended';
    sections.files.hidden = !isEnded;
    const failed = batch.total - batch.succeeded > 0;
    const file = (label, path, query, ending, hint) => h('li', {}, h('button', { type: 'button', text: label, on: { click: (event) => attempt(event.currentTarget, 'download it', () => download(path, query, `${id}.${ending}`)) } }), h('span', { class: 'quiet', text: hint }));
    render(files, [isEnded, failed], () => isEnded ? h('ul', {},
      FORMATS.filter(([format]) => format !== 'openai_errors' || failed).map(([format, label, ending]) => file(`Results: ${label}`, `${place}/results`, format === 'native' ? {} : { format }, ending, 'JSON Lines, in input order')),
      failed && file('Failed requests', `${place}/errors`, {}, 'errors.jsonl', 'Their input lines, ready to be submitted again'),
      failed && file('Reasons', `${place}/reasons`, {}, 'reasons.jsonl', 'Why each of them failed'),
      file('Receipt', place, {}, 'receipt.json', 'Counts, tokens, times and reasons')) : []);
  }

  function showDetails() {
    sections.details.hidden = false;
    const pairs = [['Priority', `${batch.priority} (0 runs first, 9 last)`], ['Input format', batch.dialect], ['Pools', Object.keys(batch.pools).join(', ')],
      ['Ended', batch.ended_at && moment(batch.ended_at)], [isOver(batch) ? null : 'Expires', moment(batch.expires_at)], ...Object.entries(batch.reused).map(([from, num_]) => ['Reused from', `${from}: ${num(num_)}`]),
      ...Object.entries(batch.metadata)];
    render(details, pairs, () => pairs.filter(([label, value]) => label && value).map(([label, value]) => h('div', {}, h('dt', {}, foreign(label)), h('dd', {}, foreign(value)))));
  }

  async function lookAtShards() {
    if (!batch) return;
    sections.shards.hidden = batch.state !== 'open' || !Object.keys(batch.pools).length;
    if (batch.state === 'ended') return batch.profile ? showFlow(batch.profile.requests, batch.profile.step_s, 'until the last request') : hideFlow();
    if (batch.state !== 'open') return;
    const found = await get(`${place}/shards`, {}, signal);
    sync(strips, Object.entries(batch.pools), ([pool]) => pool, ([pool]) => strip(pool), (node, [pool, whole]) => fillStrip(node, whole, found.pools[pool] ?? []));
    const { finished: values, step_s: step, start } = found.throughput;
    showFlow(values.slice(0, Math.max(2, Math.floor((Date.now() / 1000 - start) / step))), step, 'until now');
  }

  const hideFlow = () => { sections.flow.hidden = true; };

  function showFlow(values, step, end) {
    sections.flow.hidden = values.length < 2 || !values.some(Boolean);
    const top = Math.max(...values) / step;
    render(flow, [values, step], () => [h('div', { class: 'over quiet' }, h('span', { text: `Peak ${rate(top)}` }), h('span', { text: `${duration(step * values.length)} ${end}` })),
      chart(values, `Requests finished since the start: at most ${rate(top)}`)]);
  }

  async function lookAtLatest() {
    if (!batch || !finished(batch) || (isOver(batch) && latest._isLast)) return;
    const isEnded = batch.state === 'ended';
    const found = (await get(`${place}/latest`, { limit: 10 }, signal)).data;
    sections.latest.hidden = !found.length;
    write(latestTitle, isEnded ? `First ${found.length === 1 ? 'result' : `${found.length} results`}` : 'Latest results');
    sync(latest, found, (one) => one.index, result, () => {});
    latest._isLast = isEnded;
  }

  poll(look, LOOK_MS, signal);
  soon = [poll(lookAtShards, SHARDS_MS, signal), poll(lookAtLatest, LATEST_MS, signal)];
  return id;
}

const CELLS = { done: 'done', leased: 'being worked on', expired: 'with an expired lease', waiting: 'waiting' };

const HELD = ['Shard', 'Runner', 'Done', 'Last written'];

function strip(pool) {
  return h('div', {}, h('h3', {}, foreign(pool)), h('div', { class: 'strip', 'aria-hidden': 'true' }), h('ul', { class: 'legend' }),
    h('details', {}, h('summary'), h('table', { class: 'small' }, h('thead', {}, h('tr', {}, HELD.map((text) => h('th', { scope: 'col', text })))), h('tbody'))));
}

/** One cell for each shard, or for several of them where there are many; in words below it. */
function fillStrip(node, whole, runs) {
  const known = runs.reduce((sum, run) => sum + run.shards, 0);
  const all = [...runs, { state: 'waiting', shards: Math.max(0, whole.shards - known), runner: null }];
  const per = Math.max(1, whole.shards / CELLS_MAX);
  const [, strip_, legend, details] = node.children;
  const cells = [];
  let at = 0;
  for (const run of all) {
    const end = at + run.shards;
    const num_ = Math.ceil(end / per) - Math.ceil(at / per);
    const title = `${count(run.shards, 'shard')} ${CELLS[run.state]}${run.runner ? ` by ${run.runner}, last written ${duration(run.age_s)} ago` : ''}`;
    for (let cell = 0; cell < num_; cell++) cells.push(h('i', { class: run.state, title }));
    at = end;
  }
  const sum = (state) => all.filter((run) => run.state === state).reduce((total, run) => total + run.shards, 0);
  const held = runs.filter((run) => run.runner);
  render(strip_, [runs, whole.shards], () => cells);
  render(legend, Object.keys(CELLS).map(sum), () => Object.keys(CELLS).filter(sum).map((state) => h('li', { class: state, text: `${num(sum(state))} ${CELLS[state]}` })));
  details.hidden = !held.length;
  write(details.querySelector('summary'), `Who works on it: ${count(new Set(held.map((run) => run.runner)).size, 'runner')}`);
  render(details.querySelector('tbody'), held, () => held.slice(0, 200).map((run) => h('tr', { class: run.state }, h('td', { text: run.shards > 1 ? `${run.first} and ${run.shards - 1} more` : String(run.first) }), h('td', {}, foreign(run.runner)),
    h('td', { text: `${num(run.requests_finished)} / ${num(run.requests)}` }), h('td', { text: `${duration(run.age_s)} ago${run.state === 'expired' ? ' (lease expired)' : ''}` }))));
}

function result(one) {
  const tokens = one.input_tokens === null ? '' : `${num(one.input_tokens)} → ${num(one.output_tokens)} tokens`;
  const stop = one.stop_reason && one.stop_reason !== 'end_turn' ? one.stop_reason : '';
  const ok = one.status === 'succeeded';
  const name = one.custom_id ?? `request ${one.index + 1}`;
  return h('article', { class: 'result', 'aria-label': `Result of ${name.slice(0, 80)}` },
    h('header', { class: 'over' }, h('strong', { class: 'cut' }, foreign(name.length > 120 ? `${name.slice(0, 120)}…` : name)), h('span', { class: `badge ${ok ? 'green' : 'red'}`, text: one.status === 'errored' ? 'failed' : one.status }),
      h('span', { class: 'quiet' }, foreign([tokens, stop, one.model].filter(Boolean).join(' · ')))),
    h('div', { class: 'pair' },
      h('div', {}, h('h3', { text: 'Prompt' }), one.prompt.length ? one.prompt.map((turn) => h('div', { class: 'turn' }, h('span', { class: 'role' }, foreign(turn.role)), folded(turn.text, { cut: turn.cut, label: `${turn.role} turn`, ...(turn.role === 'system' ? { chars: 150, lines: 2 } : {}) }))) : h('p', { class: 'quiet', text: 'It cannot be shown.' })),
      h('div', {}, h('h3', { text: ok ? 'Answer' : 'Error' }), ok ? folded(one.answer ?? '', { cut: one.cut, label: 'answer' }) : [h('code', {}, foreign(one.error?.type ?? '')), folded(one.error?.message ?? '', { label: 'error' })])));
}
