// Elements without innerHTML, keyed lists, numbers with units, JSON requests, toasts. Text written by
// a user or a model reaches the document only as text nodes.

// Texts of the language that the page was asked for in; English has none, it is the key.
const WORDS = globalThis.studioWords ?? {};

/** A word of a closed set, such as a state. */
export const word = (key) => WORDS[key] || key;

/** A text in the user's language: t`${n} rows` is looked up as "{0} rows". A line end is one space. */
export const t = (parts, ...values) => word(parts.reduce((all, part, i) => `${all}{${i - 1}}${part}`)
  .replace(/\n\s+/g, ' ')).replace(/\{(\d)\}/g, (_, i) => values[i]);

export const ROOT = document.documentElement.dataset.root ?? '';

export const at = (path) => (path.startsWith('/') ? ROOT + path : path);

export const go = (path) => { location.href = at(path); };

const NAMES = { label: 'aria-label', testid: 'data-testid' };

/** An element, as h('p.s-quiet', { title: 'more' }, 'words'); the properties may be left out. */
export function h(kind, ...children) {
  const [tag, ...classes] = kind.split('.'), node = document.createElement(tag);
  const props = children[0]?.constructor === Object ? children.shift() : {};
  if (classes.length) node.className = classes.join(' ');
  if (tag === 'button') node.type = 'button';
  for (const [name, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'class') node.className = value;
    else if (name === 'style') node.style.cssText = value;
    else if (name in node && typeof value !== 'string') node[name] = value;
    else node.setAttribute(NAMES[name] ?? name, value === true ? '' : name === 'href' ? at(value) : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c != null && c !== false));
  return node;
}

export class Page extends HTMLElement {
  connectedCallback() {
    if (!this.built) this.build();
    this.built = true;
  }
}

/** Set text only when it differs, so that a selection in it survives. */
export function text(node, value) {
  const wanted = String(value ?? '');
  if (node.textContent !== wanted) node.textContent = wanted;
  return node;
}

/** Make `parent` hold one child per item, reusing nodes by key and in the items' order. The focused node
 *  stays focused, though moving it in the document would blur it. */
export function keyed(parent, items, key, create, update) {
  const held = parent.contains(document.activeElement) ? document.activeElement : null;
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let before = null;
  for (const item of items) {
    const id = String(key(item));
    let node = old.get(id);
    if (!node) {
      node = create(item);
      node.dataset.key = id;
    }
    old.delete(id);
    update(node, item);
    const next = before ? before.nextSibling : parent.firstChild;
    if (next !== node) parent.insertBefore(node, next);
    before = node;
  }
  for (const node of old.values()) node.remove();
  if (held?.isConnected && held !== document.activeElement) held.focus();
}

const CONTROLS = 'a[href], button, input, select, textarea, summary, [tabindex]';

function controls(parent) {
  const seen = {};
  return new Map([...parent.querySelectorAll(CONTROLS)].map((one) => {
    const name = `${one.localName} ${one.id || one.ariaLabel || one.labels?.[0]?.textContent || one.textContent}`;
    seen[name] = (seen[name] ?? 0) + 1;
    return [`${name} ${seen[name]}`, one];
  }));
}

/** Replace what `parent` holds. Details stay open or closed; the focus goes to the control with the name of the one
 *  that had it, else to the one in its place. */
export function redraw(parent, ...nodes) {
  const old = [...controls(parent)], at = old.findIndex(([, one]) => one === document.activeElement);
  parent.replaceChildren(...nodes);
  const now = controls(parent), left = [...now.values()];
  for (const [name, { localName, parentNode }] of old) {
    if (localName === 'summary' && parentNode && now.has(name)) now.get(name).parentNode.open = parentNode.open;
  }
  if (at >= 0 && old[at][1] !== document.activeElement) {
    (now.get(old[at][0]) ?? left[at] ?? left.at(-1))?.focus({ preventScroll: true });
  }
}

const asked = new WeakMap();

/** Return what `promise` brings; undefined if something newer was asked for `owner` meanwhile. */
export async function newest(owner, promise) {
  let found, wrong = null;
  asked.set(owner, promise);
  try { found = await promise; } catch (error) { wrong = error; }
  if (asked.get(owner) !== promise) return undefined;
  if (wrong) throw wrong;
  return found;
}

export const later = (ms) => new Promise((done) => { setTimeout(done, ms); });

const THIN = '\u202f';

/** Four significant digits: 1.234, 0.0123, 12.3 k. */
export function number(value, digits = 4) {
  if (!Number.isFinite(value)) return '–';
  if (value === 0) return '0';
  if (Math.abs(value) < 0.001) return value.toExponential(2).replace('e-', 'e−');
  // Rounding may add a digit: 99.6 to two digits is 100, never 1.0e+2.
  const wide = (one) => Math.max(digits, String(Math.trunc(Math.abs(one))).length);
  const near = +value.toPrecision(wide(value));
  return Math.abs(near) < 10000 ? near.toPrecision(wide(near)) : compact(value);
}

export const percent = (share, digits = 3) => (share == null ? '–' : `${number(100 * share, digits)}${THIN}%`);

export function compact(value) {
  if (!Number.isFinite(value)) return '–';
  const near = +value.toPrecision(3);
  for (const [limit, unit] of [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'k']]) {
    if (Math.abs(near) >= limit) return (near / limit).toPrecision(3) + THIN + unit;
  }
  return String(near);
}

export function count(value) {
  if (value == null) return '–';
  return String(Math.round(value)).replace(/\B(?=(\d{3})+(?!\d))/g, THIN);
}

export function bytes(value) {
  if (value == null) return '–';
  let unit = 0;
  while (value >= 999.5 && unit < 5) { value /= 1024; unit++; }
  return (unit ? value.toPrecision(3) : value) + THIN + ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][unit];
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  const s = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, '0');
  if (s < 60) return `${s}${THIN}s`;
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)}${THIN}min`;
  if (s < 172800) return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}${THIN}h`;
  return t`${Math.floor(s / 86400)}\u202fdays`;
}

/** Seconds since 1970 (UTC), shown in the local time zone. */
export function ago(time) {
  if (!time) return '';
  const seconds = Date.now() / 1000 - time;
  if (seconds < 45) return t`just now`;
  if (seconds < 3600) return t`${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 86400) return t`${Math.round(seconds / 3600)} h ago`;
  return when(time, day(time));
}

const OF = document.body.lang || 'en'; // as the browser prefers it: en-GB
const SPOKEN = [...(globalThis.navigator?.languages ?? []).filter((one) => one.startsWith(OF.slice(0, 2))), OF];

export const when = (time, shown = { dateStyle: 'medium', timeStyle: 'short' }) =>
  new Date(time * 1000).toLocaleString(SPOKEN, shown);

const day = (time) => ({ day: 'numeric', month: 'short',
  year: new Date(time * 1000).getFullYear() === new Date().getFullYear() ? undefined : 'numeric' });

/** 02:53; exactly 25 Nov 02:53:12. */
export const clock = (time, exact = false) => (time ? when(time, { hour: '2-digit', minute: '2-digit',
  ...(exact && { second: '2-digit', ...day(time) }) }) : '');

/** GET, or POST `body` as JSON. A refusal is thrown as an Error with the server's sentence. */
export async function request(path, body, signal) {
  const options = body === undefined ? { cache: 'no-store' } : {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body), signal,
  };
  const response = await fetch(at(path), options);
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw Object.assign(new Error(answer.error?.text || t`The server answered ${response.status}.`), answer.error);
}

/** The JSON of an answer; null where it has none. */
export async function api(path, body) {
  const response = await request(path, body);
  return response.status === 204 ? null : response.json();
}

/** As `api`, but a refusal becomes a toast and null. `done` (text, or a function of the answer)
 *  is shown on success. */
export async function send(path, body, done) {
  try {
    const answer = await api(path, body) ?? {};
    if (done) toast(typeof done === 'function' ? done(answer) : done);
    return answer;
  } catch (error) {
    toast(error.message, 'error');
    return null;
  }
}

/** A short message at the bottom; errors stay until closed. */
export function toast(message, kind = 'info') {
  const node = h('div', { class: `s-toast s-${kind}`, role: kind === 'error' ? 'alert' : 'status' },
    h('span', message),
    h('button', { label: t`Close`, onclick: () => node.remove() }, '×'));
  let stack = document.querySelector('.s-toasts');
  if (!stack) document.body.append(stack = h('div.s-toasts'));
  for (const old of stack.children) if (old.firstChild.textContent === message) old.remove();
  stack.append(node);
  if (kind !== 'error') setTimeout(() => node.remove(), 4000);
}

/** A button, busy while its promise is pending; a refusal is a toast. */
export function button(label, onclick, kind = '', props = {}) {
  const node = h('button', { class: `s-button ${kind}`, ...props, onclick: async (event) => {
    if (node.ariaBusy) return;
    const done = onclick(event);
    if (!done?.then) return;
    node.ariaBusy = 'true';
    try { await done; } catch (error) { toast(error.message, 'error'); }
    node.ariaBusy = null;
  } }, label);
  return node;
}

/** A button that asks in place, until it is pressed again, loses the focus, or Escape. */
export function sureButton(label, question, act, kind = '') {
  let asks = false;
  const ask = (on) => { asks = on; node.textContent = on ? question : label; node.classList.toggle('s-danger', on); };
  const node = button(label, ({ detail }) => {
    if (asks && detail > 1) return null;
    ask(!asks);
    if (!asks) return act();
    node.focus(); // not every browser does so at a click
    return null;
  }, kind, { onblur: () => ask(false), onkeydown: (event) => {
    if (event.key !== 'Escape' || !asks) return;
    event.preventDefault(); // the menu or dialog around it stays
    event.stopPropagation();
    ask(false);
  } });
  return node;
}

export const quiet = (...content) => h('p.s-quiet', ...content);

export const snippet = (title, code) => h('div.s-snippet',
  h('header', title, button(t`Copy`, (e) => copy(code, e.currentTarget), 's-tool')), h('pre', code));

/** An error line, hidden until `say` gives it words. */
export const errorLine = (props = {}) => h('p.s-error', { role: 'alert', hidden: true, ...props });

export function say(line, words) {
  line.hidden = !words;
  text(line, words || '');
}

const scrolled = globalThis.ResizeObserver && new ResizeObserver((all) => {
  for (const { target: one } of all) one.tabIndex = one.scrollWidth > one.clientWidth ? 0 : -1;
});

/** A table of `heads` (texts or th) and `rows` (arrays of texts, nodes or td). */
export function table(heads, rows, props = {}) {
  const cell = (tag, value, more) => (['td', 'th'].includes(value?.localName) ? value : h(tag, more, value ?? ''));
  const node = h('table.s-table', props,
    heads && h('thead', h('tr', heads.map((head) => cell('th', head, { scope: 'col' })))),
    h('tbody', rows.map((row) => h('tr', row.map((value) => cell('td', value, {}))))));
  scrolled?.observe(node);
  return node;
}

/** What scrolls sideways inside, its first column staying. */
export function scrolling(...content) {
  const node = h('div.s-scroll', content);
  scrolled?.observe(node);
  return node;
}

/** Figures beside each other, of [name, value, note, properties]. */
export const figures = (rows, kind = 's-figures') => h('dl', { class: kind },
  rows.map(([name, value, note = '', more = {}]) => h('div', more,
    h('dt', name), h('dd', h('b', value), h('span', note)))));

export const pairs = (rows) => h('dl.s-pairs', rows.filter(Boolean).map(([name, value]) =>
  h('div', h('dt', name), h('dd', value))));

export const bar = (kind = 's-wide', props = {}) =>
  h('span', { class: `s-bar-track ${kind}`, ...props }, h('span'));

/** Fill a bar to a share of 1; `waiting` animates it. */
export function fill(track, share, waiting = false) {
  track.firstChild.style.width = `${100 * share}%`;
  if (track.role === 'progressbar') track.setAttribute('aria-valuenow', Math.round(100 * share));
  track.toggleAttribute('data-waiting', waiting);
  return track;
}

/** A row of tabs from [[id, label]], which the arrow keys change; `choose(tabs, id)` marks one. */
export const tabs = (entries, picked, props = {}) => h('div.s-tabs', { role: 'tablist',
  onkeydown: ({ key, target }) => {
    const next = { ArrowLeft: target.previousSibling, ArrowRight: target.nextSibling }[key];
    next?.click();
    next?.focus(); // last: what opens may take the focus
  } }, entries.map(([id, label]) => h('button', { role: 'tab', id: `tab-${id}`, 'data-view': id, ...props,
  onclick: () => picked(id) }, label)));

export function choose(list, id) {
  for (const tab of list.children) {
    tab.ariaSelected = tab.dataset.view === id;
    tab.tabIndex = tab.dataset.view === id ? 0 : -1;
  }
}

export const dots = (...parts) => parts.flat().filter(Boolean).join(' · ');

export function menu(label, ...items) {
  const node = h('details.s-menu', { onfocusout: (event) => {
    if (!node.contains(event.relatedTarget)) node.open = false;
  }, onkeydown: (event) => {
    if (event.key === 'Escape') { node.open = false; node.firstChild.focus(); }
  } }, h('summary.s-button', label), h('div.s-menu-items', items));
  return node;
}

/** Return true if `key` differs from the last one of this node, which is then drawn again. */
export function changed(node, key) {
  if (node.drawnKey === key) return false;
  node.drawnKey = key;
  return true;
}

export function badge(state, note = '') {
  return h('span.s-badge', { 'data-state': state }, note || word(state));
}

export async function copy(value, node) {
  try { await navigator.clipboard.writeText(value); } catch {
    const area = h('textarea', { style: 'position:fixed;opacity:0' });
    area.value = value;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  const before = node.textContent;
  node.textContent = t`Copied`;
  setTimeout(() => { node.textContent = before; }, 1200);
}

export const query = () => new URL(location.href).searchParams;

const LEFT = 'studio.left';

export const leftAt = (path) => {
  try { return sessionStorage.getItem(LEFT + path) ?? localStorage.getItem(LEFT + path) ?? ''; } catch { return ''; }
};

/** Note where this page stands; a new tab (`opened`) begins where Train was left. */
export function stay(opened) {
  const { pathname } = location, key = LEFT + pathname;
  try {
    if (opened && !location.search && sessionStorage.getItem(key) === null) {
      history.replaceState(history.state, '', leftAt(pathname) || pathname);
    }
    sessionStorage.setItem(key, location.search);
    if (pathname === at('/')) localStorage.setItem(key, location.search);
  } catch { /* private window */ }
}

/** Write parameters into the address; with `step`, as a step that Back undoes. */
export function remember(changes, step = false) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    url.searchParams.delete(name);
    for (const one of [].concat(value ?? [])) url.searchParams.append(name, one);
  }
  url.search = url.search.replace(/%(2C|3A|7E|2F|3D|40)/gi, (code) => decodeURIComponent(code));
  if (url.href !== location.href) history[step ? 'pushState' : 'replaceState'](history.state, '', url);
  stay();
}

export function short(path) {
  return path.replace(/\/+$/, '').split('/').pop() || path;
}
