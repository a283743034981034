// Try it: what a file is, what is wrong with it, what it will take, and its submission.

import { ApiError, get, poll, post, postForBlob } from './api.js';
import { folded, foreign, h, render } from './dom.js';
import { bytes, compact, count, duration, num } from './format.js';
import { attempt, fact, note, toast } from './parts.js';

const CHECK_BYTES_MAX = 32 * 1024 * 1024;
const PAUSE_MS = 400; // after the last key before the file is checked again
const EXAMPLE = 'What is the capital of France?\nWrite one sentence about rain.\n';

export function submitView(root, { signal, go }) {
  let file = null;
  let report = null;
  let checking = new AbortController();
  let timer = 0;

  const input = h('input', { type: 'file', id: 'file', class: 'unseen' });
  const drop = h('label', { class: 'drop', for: 'file' }, input, h('strong', { text: 'Drop a file here, or choose one' }),
    h('span', { class: 'quiet', text: 'Requests as JSONL or JSON; tables as CSV, TSV or JSONL; one prompt per line as text; gzip or Zstandard.' }));
  const text = h('textarea', { id: 'text', rows: '4', spellcheck: 'false', placeholder: EXAMPLE });
  const stage = h('select', { id: 'stage' }, h('option', { value: '', text: 'By each request' }));
  const pool = h('select', { id: 'pool' }, h('option', { value: '', text: 'By stage or request' }));
  const priority = h('select', { id: 'priority' }, Array.from({ length: 10 }, (_, at) => h('option', { value: at, selected: at === 5, text: { 0: '0 (first)', 5: '5 (normal)', 9: '9 (last)' }[at] ?? String(at) })));
  const prompt = h('textarea', { id: 'prompt', rows: '3', placeholder: 'Is this review good or bad? {{ review }}' });
  const columns = h('div', { class: 'chips' });
  const promptField = h('div', { class: 'field wide', hidden: true }, h('label', { for: 'prompt', text: 'Prompt for each row' }), prompt, columns);
  const said = h('div', { class: 'report', 'aria-live': 'polite' });
  const send = h('button', { type: 'button', class: 'primary', disabled: true, text: 'Submit' });

  root.append(h('div', { class: 'head' }, h('h1', { tabindex: '-1', text: 'Try it' })),
    drop, h('details', { class: 'typed' }, h('summary', { text: 'Or type some prompts, one per line' }), h('label', { for: 'text', class: 'unseen', text: 'Prompts, one per line' }), text),
    h('div', { class: 'filters' }, field('Stage', stage), field('Pool', pool), field('Priority', priority)), promptField, said,
    h('div', { class: 'actions' }, send));

  input.addEventListener('change', () => {
    take(input.files[0]);
    input.value = ''; // so that the same file can be chosen again
  });
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle('over-it', kind === 'dragover');
      if (kind === 'drop' && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    }, { signal });
  }
  text.addEventListener('input', () => {
    file = text.value.trim() ? new File([text.value], 'prompts.txt') : null;
    soon();
  });
  for (const one of [stage, pool]) one.addEventListener('change', () => check());
  prompt.addEventListener('input', soon);
  send.addEventListener('click', () => {
    send.textContent = 'Submitting…';
    attempt(send, 'submit it', submit).finally(() => { [send.textContent, send.disabled] = ['Submit', !canSend()]; });
  });

  const done = new AbortController();
  signal.addEventListener('abort', () => { done.abort(); checking.abort(); clearTimeout(timer); });
  poll(async () => {
    const pools = await get('pools', {}, signal);
    done.abort();
    for (const name of [...new Set(pools.flatMap((one) => one.stages))].sort()) stage.append(h('option', { value: name, text: name }));
    for (const one of pools) pool.append(h('option', { value: one.name, text: `${one.name} (${one.model})` }));
  }, 3000, done.signal);

  function take(chosen) {
    if (!chosen) return;
    file = chosen;
    prompt.value = '';
    promptField.hidden = true;
    check();
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(check, PAUSE_MS);
  }

  async function check() {
    checking.abort();
    const own = (checking = new AbortController());
    report = null;
    send.disabled = true;
    if (!file) return said.replaceChildren();
    if (file.size > CHECK_BYTES_MAX) {
      show(h('p', {}, foreign(file.name), ` has ${bytes(file.size)}: it is too large to be checked here. Requests (JSONL) can be submitted all the same; \`batchfile validate\` checks them.`));
      send.disabled = !canSend();
      return undefined;
    }
    said.setAttribute('aria-busy', 'true');
    try {
      const query = { name: file.name, stage: stage.value, pool: pool.value, prompt: prompt.value };
      report = await post('check', { query, body: file, type: 'application/octet-stream', signal: own.signal });
      promptField.hidden = report.content !== 'rows' || report.layout === 'text';
      render(columns, report.columns, () => report.columns.slice(0, 30).map((name) => h('button', { type: 'button', class: 'chip', on: { click: () => insert(name) } }, foreign(name))));
      show(...parts(report));
    } catch (error) {
      if (error.name === 'AbortError') return undefined;
      if (!(error instanceof ApiError)) throw error;
      show(note('red', error.message.replace(/^the body\b/, () => file.name)));
    } finally {
      if (own === checking) said.removeAttribute('aria-busy');
    }
    send.disabled = !canSend();
    return undefined;
  }

  const show = (...nodes) => said.replaceChildren(...nodes.filter(Boolean));
  const canSend = () => file !== null && (report ? report.advice === null && report.requests > report.bad + report.unrouted : file.size > CHECK_BYTES_MAX);

  function insert(name) {
    const slot = /^[A-Za-z_]\w*$/.test(name) ? `{{ ${name} }}` : `{{ row["${name}"] }}`;
    prompt.setRangeText(slot, prompt.selectionStart, prompt.selectionEnd, 'end');
    prompt.focus();
    soon();
  }

  function parts(found) {
    const head = h('h2', {}, foreign(file.name), h('span', { class: 'quiet' }, ` ${bytes(file.size)}, `, foreign(found.kind)));
    if (found.advice) return [head, found.needs_prompt ? note('quiet', 'Write a prompt with its columns: it is filled in for each row.') : note('red', found.advice)];
    return [head, facts(found), found.unrouted > 0 && note('amber', `${count(found.unrouted, 'request')} would have no pool: choose a stage or a pool.`, 'Missing'), problems(found),
      found.first_prompt.length > 0 && h('section', { 'aria-label': 'First prompt' }, h('h3', { text: 'First prompt' }), found.first_prompt.map((turn) => h('div', { class: 'turn' }, h('span', { class: 'role' }, foreign(turn.role)), folded(turn.text, { cut: turn.cut, label: `${turn.role} turn` }))))];
  }

  function facts(found) {
    const likely = found.expected_output_tokens;
    const times = found.pools.map((one) => h('div', {}, foreign(one.pool), `: ${one.until_s === null ? (one.runners ? 'not measured yet' : 'no live runner') : `about ${duration(one.until_s)}`}${one.waiting ? `, behind ${count(one.waiting, 'request')}` : ''}`));
    return h('dl', { class: 'facts' }, fact('Requests', num(found.requests)), fact('Cannot run', num(found.bad + found.unrouted)), fact('Input tokens', `about ${compact(found.input_tokens)}`, 'From their characters'),
      fact('Output tokens', likely === null ? `at most ${compact(found.max_output_tokens)}` : `about ${compact(likely)}`, `The limits add up to ${num(found.max_output_tokens)}`),
      times.length > 0 && fact('Time', times));
  }

  function problems(found) {
    if (!found.num_problems) return h('p', { class: 'note green' }, h('strong', { text: 'Fine' }), ' Every request can run.');
    return h('section', { 'aria-label': 'Problems' }, h('h3', { text: count(found.num_problems, 'problem') }), found.bad + found.unrouted < found.requests && h('p', { class: 'quiet', text: 'Requests that cannot run get a failed result; the others run.' }),
      h('ol', { class: 'problems' }, [...alike(found.problems)].map(([one, num_]) => h('li', {}, h('span', { class: 'quiet', text: `Line ${num(one.line)}${num_ > 1 ? ` and ${num(num_ - 1)} more` : one.column === null ? '' : `, column ${num(one.column)}`}` }), h('div', { class: 'prose', dir: 'auto' }, one.where && [h('code', {}, foreign(one.where)), ' '], foreign(one.message)), one.fix && h('div', { class: 'advice' }, foreign(one.fix))))),
      found.num_problems > found.problems.length && h('p', { class: 'quiet', text: `And ${num(found.num_problems - found.problems.length)} more: \`batchfile validate\` lists them all.` }));
  }

  async function submit() {
    const isPlain = !report || (report.content === 'requests' && report.layout === 'jsonl');
    const body = isPlain ? file : await postForBlob('requests', { query: { name: file.name, prompt: prompt.value }, body: file });
    const query = { stage: stage.value, pool: pool.value, priority: priority.value, strict: 'false', metadata: `file=${file.name.slice(0, 200)}` };
    const made = await post('batches', { query, body });
    const href = `#/batch/${encodeURIComponent(made.id)}`;
    toast(`${made.id} was created with ${count(made.total, 'request')}.`, signal.aborted && { href, text: 'Open' });
    if (!signal.aborted) go(href); // else another view was opened while the file was sent
  }
  return 'Try it';
}

const field = (label, control) => h('div', { class: 'field' }, h('label', { for: control.id, text: label }), control);

/** The first of the problems that say the same, and how many do. */
function alike(problems) {
  const counts = new Map();
  for (const one of problems) {
    const first = [...counts.keys()].find((known) => known.where === one.where && known.message === one.message) ?? one;
    counts.set(first, (counts.get(first) ?? 0) + 1);
  }
  return counts;
}
