// Train, right side: the launched run with its live loss, the form as command and YAML, and the picker
// of target modules.

import { Preflight, Presets } from './preflight.js';
import { board } from '../core/chart.js';
import { api, badge, button, duration, h, number, query, remember, sureButton, text, toast, typeInto }
  from '../core/dom.js';
import { dialog } from '../core/form.js';
import { Upload } from '../core/upload.js';
import { compareAddress } from '../core/lanes.js';
import { hues, isLive, poke, progress, share, stateName, subscribe } from '../core/live.js';
import { planSweep } from '../runs/queue.js';
import { snippet } from '../runs/run_tabs.js';

/** An element that python writes again and again: gradio then changes the attribute in place and
 *  takes the children away, so everything is rendered afresh once it is done. */
class Told extends HTMLElement {
  static observedAttributes = ['data-value'];

  connectedCallback() {
    if (!this.children.length) this.render(this.value());
  }

  attributeChangedCallback() {
    if (this.isConnected) queueMicrotask(() => this.render(this.value()));
  }

  value() {
    return JSON.parse(this.dataset.value || '{}');
  }
}

export class Launch extends Told {
  render({ job, error, field }) {
    this.leave?.();
    this.run = job ?? this.run ?? (Number(query().get('run')) || null);
    this.said = this.acts = null;
    if (job) remember({ run: job });
    mark(field);
    this.build(error);
    this.leave = subscribe({
      element: this,
      runs: () => (this.run ? [this.run] : []),
      names: () => ['loss', 'eval_loss'],
      onJobs: (jobs) => this.take(jobs),
      onMetrics: (series) => this.board.update(series),
    });
    poke();
  }

  build(error) {
    this.board = board(['loss', 'eval_loss']);
    this.board.group.smoothing = Number(localStorage.getItem('studio.smoothing') ?? 0.6);
    this.error = h('p', { class: 's-error', role: 'alert', 'data-testid': 'launch-error',
      hidden: !error }, error);
    this.line = h('p', { class: 's-launched', role: 'status', 'data-testid': 'launched' });
    this.track = h('span', { class: 's-bar-track s-wide', role: 'progressbar', 'aria-label':
      'Progress', 'aria-valuemin': 0, 'aria-valuemax': 100 }, h('span', {}));
    this.going = h('span', { 'data-testid': 'progress' });
    this.left = h('span', {});
    this.progress = h('div', { class: 's-progress' }, this.track,
      h('div', { class: 's-progress-words' }, this.going, this.left));
    this.actions = h('div', { class: 's-actions' });
    this.show = h('div', { class: 's-live', hidden: true }, this.line, this.progress,
      this.board.charts.map((chart) => chart.element), this.actions);
    this.before = h('div', { class: 's-before' }, sketch(),
      h('p', {}, 'The loss appears here within seconds of pressing Train.'));
    this.replaceChildren(this.error, this.show, this.before);
  }

  take(jobs) {
    // Before the first launch in this tab, show what is going on anyway.
    if (!this.run) {
      this.run = jobs.find((job) => job.kind === 'train' && isLive(job) && job.state !== 'queued')?.id
        ?? null;
      if (this.run) poke();
    }
    const job = jobs.find((one) => one.id === this.run);
    this.show.hidden = !job;
    this.before.hidden = Boolean(job);
    if (!job) return;
    this.board.group.set({ hues: hues([job.id]), names: new Map([[job.id, job.name]]) });
    const ahead = jobs.filter((one) => one.id !== job.id && isLive(one)
      && (one.state !== 'queued' || one.id < job.id)).length;
    this.say(job, ahead);
    this.track.firstChild.style.width = `${100 * share(job)}%`;
    this.track.setAttribute('aria-valuenow', Math.round(100 * share(job)));
    this.track.toggleAttribute('data-waiting', ['queued', 'starting'].includes(job.state)
      || (job.state === 'running' && !job.step));
    text(this.going, progress(job) || job.phase || (job.state === 'queued' ? 'Waits for its turn'
      : job.state === 'starting' ? 'Starting' : ''));
    const left = job.state === 'running' ? job.seconds_left : null;
    text(this.left, left != null ? `${duration(left)} left`
      : job.last_loss != null && !isLive(job) ? `loss ${number(job.first_loss)} → ${number(job.last_loss)}` : '');
    this.act(job);
  }

  say(job, ahead) {
    const state = stateName(job);
    const words = `${state} ${ahead} ${job.error?.text}`;
    if (this.said === words) return;
    this.said = words;
    const link = h('a', { href: `/runs?run=${job.id}` }, job.name);
    const more = job.state === 'queued' && ahead ? ` after ${ahead} other run${ahead > 1 ? 's' : ''}` : '';
    this.line.replaceChildren(badge(state), link, more,
      job.error ? h('span', { class: 's-error' }, job.error.text) : '');
  }

  act(job) {
    const acts = `${job.state} ${job.intent} ${job.adapter}`;
    if (this.acts === acts) return;
    this.acts = acts;
    const can = new Set(job.actions);
    const send = async (action) => {
      try { await api(`/api/jobs/${job.id}/${action}`, {}); } catch (e) { toast(e.message, 'error'); }
      poke();
    };
    this.actions.replaceChildren(...[
      job.adapter && h('a', { class: 's-button s-primary', href: compareAddress(job) },
        'Compare with the base'),
      can.has('resume') && button('Resume', () => send('resume'), 's-primary'),
      can.has('pause') && button('Pause', () => send('pause')),
      can.has('cancel') && job.intent !== 'cancel'
        && sureButton('Cancel', 'Really cancel?', () => send('cancel')),
      h('a', { class: 's-button', href: `/runs?run=${job.id}` }, 'Open in Runs'),
    ].filter(Boolean));
  }
}

/** The form in other words: command line and YAML, and the address that opens it again. */
export class Notes extends Told {
  render(values) {
    // Looks at the form overlap and an older one may arrive last: the newest is what counts.
    if ((values.turn ?? 0) < (Notes.newest?.turn ?? 0)) values = Notes.newest;
    else if (values.turn) Notes.newest = values;
    const { command, yaml, query: state, error, field } = values;
    mark(field);
    if (error) {
      this.replaceChildren(h('p', { class: 's-error', role: 'alert' }, error));
      return;
    }
    // The document's own first state says nothing yet: the address decides what the form shows.
    if (state !== null) {
      const set = new URLSearchParams(state).getAll('set');
      remember({ set });
      document.dispatchEvent(new CustomEvent('studio-form', { detail: set }));
    }
    for (const wait of [0, 400, 1500]) setTimeout(offer, wait); // another method's fields come later
    this.replaceChildren(h('details', { class: 's-same', open: localStorage.getItem('studio.same') !== '0',
      ontoggle: (e) => localStorage.setItem('studio.same', e.target.open ? '1' : '0') },
      h('summary', {}, 'The same as a command or a file'),
      snippet('Command line', command), snippet('spec.yaml', yaml)),
    button('Sweep: several values of some fields …', () => planSweep(null, query().getAll('set')),
      's-tool'),
    button('Bake-off: these settings with several methods …', () => import('../adapters/bakeoff.js').then(
      ({ askBakeoff }) => askBakeoff({ assignments: query().getAll('set') })), 's-tool'));
  }
}

/** The picker of target modules, where the page shows such a field. */
function offer() {
  offerPicker(() => query().getAll('set').find((one) => one.startsWith('model.path='))
    ?.slice('model.path='.length) ?? 'starter');
}

/** Point at the field a sentence is about. */
function mark(field) {
  for (const node of document.querySelectorAll('.s-wrong-field')) node.classList.remove('s-wrong-field');
  if (!field) return;
  document.getElementById(field)?.classList.add('s-wrong-field');
}

/** A faint falling curve: what is going to be here. */
function sketch() {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 240 90');
  svg.setAttribute('aria-hidden', 'true');
  for (const [d, faint] of [['M10 5V80H232', 1],
    ['M12 12C30 40 42 52 74 60S140 70 230 73', 0]]) {
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('d', d);
    path.setAttribute('class', faint ? 's-axis' : 's-curve');
    svg.append(path);
  }
  return svg;
}

/** Put a "Choose …" button on every field of target modules that is on the page. */
export function offerPicker(modelPath) {
  for (const field of document.querySelectorAll('[id^=field-method-][id$=-target_modules]')) {
    if (field.querySelector('.s-pick')) continue;
    field.append(button('Choose …', () => pick(field, modelPath()), 's-tool s-pick',
      { title: "Choose among the model's own modules, layer by layer" }));
  }
}

async function pick(field, path) {
  let modules;
  try {
    ({ modules } = await api(`/api/targets?path=${encodeURIComponent(path)}`));
  } catch (error) { return toast(error.message, 'error'); }
  const names = [...new Set(modules.map((one) => one.name))];
  const layers = [...new Set(modules.map((one) => one.layer))];
  const at = new Map(modules.map((one) => [`${one.layer} ${one.name}`, one]));
  const input = field.querySelector('input');
  const chosen = new Set(modules.filter((one) => says(input.value, one)).map((one) => one.key));
  const count = h('p', { class: 's-quiet', role: 'status' });
  const boxes = new Map();
  const show = () => {
    for (const [key, box] of boxes) box.checked = chosen.has(key);
    text(count, `${chosen.size} of ${modules.length} linear layers`);
  };
  const flip = (some) => {
    const keys = some.filter(Boolean).map((one) => one.key);
    const all = keys.every((key) => chosen.has(key));
    for (const key of keys) chosen[all ? 'delete' : 'add'](key);
    show();
  };
  const cell = (one) => {
    if (!one) return h('td', {});
    const box = h('input', { type: 'checkbox', class: 's-box', 'aria-label': one.key,
      title: `${one.key} (${one.shape.join(' × ')})`,
      onchange: () => { chosen[box.checked ? 'add' : 'delete'](one.key); show(); } });
    boxes.set(one.key, box);
    return h('td', {}, box);
  };
  const table = h('table', {}, h('thead', {}, h('tr', {}, h('th', {}, 'Layer'), layers.map((layer) =>
    h('th', { scope: 'col' }, button(String(layer), () => flip(names.map((name) => at.get(`${layer} ${name}`))),
      's-tool', { title: 'All modules of this layer' }))))),
  h('tbody', {}, names.map((name) => h('tr', {}, h('th', { scope: 'row' }, button(name,
    () => flip(layers.map((layer) => at.get(`${layer} ${name}`))), 's-tool', { title: 'In every layer' })),
  layers.map((layer) => cell(at.get(`${layer} ${name}`)))))));
  const node = dialog('Target modules', [h('div', { class: 's-actions' },
    button('All', () => flip([...at.values()].filter((one) => !chosen.has(one.key))), 's-tool'),
    button('Attention', () => flip(modules.filter((one) => /att/.test(one.name))), 's-tool'),
    button('MLP', () => flip(modules.filter((one) => !/att/.test(one.name))), 's-tool'), count),
  h('div', { class: 's-targets', 'data-testid': 'targets' }, table)], 'Use these', async () => {
    if (!chosen.size) throw new Error('Choose at least one linear layer.');
    const { targets } = await api('/api/targets', { path, keys: [...chosen] });
    // Nothing behind an open dialog can take the focus.
    node.addEventListener('close', () => typeInto(input, targets.join(', ')));
  });
  node.classList.add('s-wide-dialog');
  show();
}

/** Whether the field's words mean this module: a group, a whole path or its end. */
function says(value, { key, name }) {
  const words = value.split(',').map((word) => word.trim()).filter(Boolean);
  return words.some((word) => word === 'all-linear' || key === word || key.endsWith(`.${word}`)
    || (word === 'attention' && /att/.test(name)) || (word === 'mlp' && !/att/.test(name)));
}

customElements.define('studio-launch', Launch);
customElements.define('studio-notes', Notes);
customElements.define('studio-preflight', Preflight);
customElements.define('studio-presets', Presets);
customElements.define('studio-upload', Upload);
