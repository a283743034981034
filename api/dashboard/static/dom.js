// Builds elements. Everything that is shown is text: nothing here takes markup, and the page's policy forbids it.

const SVG = 'http://www.w3.org/2000/svg';

/** `props`: attributes; `on`: listeners; `class` and `text`; false and null leave an attribute out. Children are nodes or text. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === 'on') for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === 'text') node.textContent = value;
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return node;
}

/** Text from elsewhere: its direction does not reach its surroundings. */
export function foreign(text, props = {}) {
  return h('bdi', props, String(text));
}

/** Replaces the children only if `stamp` differs from the last one, so that focus and selection stay. */
export function render(node, stamp, make) {
  const mark = JSON.stringify(stamp);
  if (node.dataset && node._stamp === mark) return;
  node._stamp = mark;
  node.replaceChildren(...[make()].flat().filter(Boolean));
}

export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Keeps one child for each item: `make(item)` once, `update(child, item)` each time. Moves as few as possible. */
export function sync(parent, items, key, make, update) {
  const known = parent._known ?? (parent._known = new Map());
  const wanted = new Set(items.map(key));
  for (const [id, child] of known) {
    if (!wanted.has(id)) {
      child.remove();
      known.delete(id);
    }
  }
  let at = parent.firstElementChild;
  for (const item of items) {
    let child = known.get(key(item));
    if (!child) known.set(key(item), (child = make(item)));
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
    update(child, item);
  }
}

/** A long text, folded after some lines; a text from elsewhere in any direction. */
export function folded(text, { chars = 420, lines = 7, cut = 0, label = 'text' } = {}) {
  const body = h('div', { class: 'prose', dir: 'auto' });
  const more = cut ? h('p', { class: 'quiet', text: `${cut.toLocaleString('en')} more characters are in the results file.` }) : null;
  const short = shortened(text, chars, lines);
  body.textContent = short;
  if (short === text) return h('div', {}, body, more);
  const button = h('button', { type: 'button', class: 'link', 'aria-expanded': 'false', text: 'Show all' });
  button.setAttribute('aria-label', `Show all of the ${label}`);
  button.addEventListener('click', () => {
    const isOpen = button.getAttribute('aria-expanded') === 'true';
    body.textContent = isOpen ? short : text;
    button.textContent = isOpen ? 'Show all' : 'Show less';
    button.setAttribute('aria-label', `${button.textContent} of the ${label}`);
    button.setAttribute('aria-expanded', String(!isOpen));
  });
  return h('div', {}, body, more, button);
}

function shortened(text, chars, lines) {
  let at = -1;
  for (let num = 0; num < lines; num++) {
    at = text.indexOf('\n', at + 1);
    if (at < 0) break;
  }
  const end = Math.min(text.length, chars, at < 0 ? Infinity : at);
  return end < text.length ? `${[...text.slice(0, end)].join('').trimEnd()} …` : text;
}
