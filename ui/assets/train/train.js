// Train, right side: the launched run with its live loss, the form as command and YAML, and the picker
// of target modules.

import { board } from '../core/chart.js';
import { actOn, api, badge, button, errorLine, h, query, remember, say, snippet, sureButton,
  table, text, typeInto } from '../core/dom.js';
import { dialog } from '../core/form.js';
import { compareAddress } from '../core/lanes.js';
import { hues, isLive, JobProgress, poke, stateName, subscribe } from '../core/live.js';
import { sendFile } from '../core/upload.js';
import { planSweep } from '../runs/queue.js';
import { Preflight, Presets } from './preflight.js';

/** An element whose `data-value` the server rewrites: gradio then removes the children, so everything is
 *  rendered again once it is done. */
class ServerElement extends HTMLElement {
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

class Launch extends ServerElement {
  render({ job, error, field }) {
    this.leave?.();
    this.run = job ?? this.run ?? (Number(query().get('run')) || null);
    this.shown = null;
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
    this.error = errorLine({ 'data-testid': 'launch-error' });
    say(this.error, error);
    this.line = h('p', { class: 's-launched', role: 'status', 'data-testid': 'launched' });
    this.progress = new JobProgress();
    this.actions = h('div', { class: 's-actions' });
    this.show = h('div', { class: 's-live', hidden: true }, this.line, this.progress.element,
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
    this.progress.show(job);
    const shown = [stateName(job), ahead, job.error?.text, job.intent, job.adapter].join(' ');
    if (this.shown !== shown) this.showState(job, ahead);
    this.shown = shown;
  }

  /** Its state and what can be done with it. */
  showState(job, ahead) {
    const more = job.state === 'queued' && ahead ? ` after ${ahead} other run${ahead > 1 ? 's' : ''}` : '';
    this.line.replaceChildren(badge(stateName(job)), h('a', { href: `/runs?run=${job.id}` }, job.name), more,
      job.error ? h('span', { class: 's-error' }, job.error.text) : '');
    const can = new Set(job.actions);
    const act = (action) => actOn(job.id, action).then(poke);
    this.actions.replaceChildren(...[
      job.adapter && h('a', { class: 's-button s-primary', href: compareAddress(job) },
        'Compare with the base'),
      can.has('resume') && button('Resume', () => act('resume'), 's-primary'),
      can.has('pause') && button('Pause', () => act('pause')),
      can.has('cancel') && job.intent !== 'cancel'
        && sureButton('Cancel', 'Really cancel?', () => act('cancel')),
      h('a', { class: 's-button', href: `/runs?run=${job.id}` }, 'Open in Runs'),
    ].filter(Boolean));
  }
}

/** A button that uploads a data file and chooses it as the dataset. It waits for the server's first answer, whose
 *  list of datasets would not have the new file yet. */
class Upload extends ServerElement {
  render({ accept }) {
    if (!accept) return;
    this.line = h('span', { role: 'status' });
    this.file = h('input', { type: 'file', hidden: true, accept, 'data-testid': 'train-file',
      onchange: () => this.send(this.file.files[0]) });
    this.replaceChildren(this.line, this.file, button('Upload a data file …', () => this.file.click(), 's-link'));
  }

  async send(file) {
    if (!file) return;
    this.file.value = '';
    this.line.className = 's-quiet';
    try {
      const path = await sendFile(file, { keep: true, onProgress: (words) => text(this.line, words) });
      text(this.line, '');
      typeInto(document.querySelector('#uploaded :is(input, textarea)'), path);
    } catch (error) {
      this.line.className = 's-error';
      text(this.line, error.message);
    }
  }
}

/** The form as command line and YAML; it also writes the form's state into the address. */
class Notes extends ServerElement {
  render(values) {
    // Reads of the form overlap and an older one may arrive last: the newest counts.
    if ((values.turn ?? 0) < (Notes.newest?.turn ?? 0)) values = Notes.newest;
    else if (values.turn) Notes.newest = values;
    const { command, yaml, query: state, error, field } = values;
    mark(field);
    if (error) return this.replaceChildren(h('p', { class: 's-error', role: 'alert' }, error));
    // The document's first state is empty: the address decides what the form shows.
    if (state !== null) {
      const set = new URLSearchParams(state).getAll('set');
      remember({ set, preset: null });
      document.dispatchEvent(new CustomEvent('studio-form', { detail: set }));
    }
    for (const wait of [0, 400, 1500]) setTimeout(offer, wait); // another method's fields come later
    return this.replaceChildren(h('details', { class: 's-same', open: localStorage.getItem('studio.same') !== '0',
      ontoggle: (e) => localStorage.setItem('studio.same', e.target.open ? '1' : '0') },
      h('summary', {}, 'The same as a command or a file'),
      snippet('Command line', command), snippet('spec.yaml', yaml)),
    button('Sweep: several values of some fields …', () => planSweep(null, query().getAll('set')),
      's-tool'),
    button('Bake-off: these settings with several methods …', () => import('../adapters/bakeoff.js').then(
      ({ askBakeoff }) => askBakeoff({ set: query().getAll('set') })), 's-tool'));
  }
}

/** The picker of target modules, where the page shows such a field. */
function offer() {
  offerPicker(() => query().getAll('set').find((one) => one.startsWith('model.path='))
    ?.slice('model.path='.length) ?? 'starter');
}

/** Mark the field that an error is about. */
function mark(field) {
  for (const node of document.querySelectorAll('.s-wrong-field')) node.classList.remove('s-wrong-field');
  if (field) document.getElementById(field)?.classList.add('s-wrong-field');
}

/** A faint falling curve, shown before the first launch. */
function sketch() {
  const svg = (tag, props, ...children) => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  return svg('svg', { viewBox: '0 0 240 90', 'aria-hidden': 'true' }, svg('path', { class: 's-axis',
    d: 'M10 5V80H232' }),
    svg('path', { class: 's-curve', d: 'M12 12C30 40 42 52 74 60S140 70 230 73' }));
}

/** Put a "Choose …" button on every field of target modules that is on the page. */
function offerPicker(modelPath) {
  for (const field of document.querySelectorAll('[id^=field-method-][id$=-target_modules]')) {
    if (field.querySelector('.s-pick')) continue;
    field.append(button('Choose …', () => pick(field, modelPath()), 's-tool s-pick',
      { title: "Choose among the model's own modules, layer by layer" }));
  }
}

async function pick(field, path) {
  const modules = await api('/api/do/modules', { 'model.path': path, local: true });
  const names = [...new Set(modules.map((one) => one.name))];
  const layers = [...new Set(modules.map((one) => one.layer))];
  const at = new Map(modules.map((one) => [`${one.layer} ${one.name}`, one]));
  const input = field.querySelector('input');
  const chosen = new Set(modules.filter((one) => targets(input.value, one)).map((one) => one.key));
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
  const of = (layer, name) => at.get(`${layer} ${name}`);
  const boxesOf = table(['Layer', ...layers.map((layer) => button(String(layer), () =>
    flip(names.map((name) => of(layer, name))), 's-tool', { title: 'All modules of this layer' }))],
  names.map((name) => [h('th', { scope: 'row' }, button(name, () => flip(layers.map((layer) => of(layer, name))),
    's-tool', { title: 'In every layer' })), ...layers.map((layer) => cell(of(layer, name)))]), { class: '' });
  const node = dialog('Target modules', [h('div', { class: 's-actions' },
    button('All', () => flip([...at.values()].filter((one) => !chosen.has(one.key))), 's-tool'),
    button('Attention', () => flip(modules.filter((one) => /att/.test(one.name))), 's-tool'),
    button('MLP', () => flip(modules.filter((one) => !/att/.test(one.name))), 's-tool'), count),
  h('div', { class: 's-targets', 'data-testid': 'targets' }, boxesOf)], 'Use these', async () => {
    if (!chosen.size) throw new Error('Choose at least one linear layer.');
    const { targets: found } = await api('/api/do/modules', { 'model.path': path, chosen: [...chosen] });
    // Nothing behind an open dialog can take the focus.
    node.addEventListener('close', () => typeInto(input, found.join(', ')));
  });
  node.classList.add('s-wide-dialog');
  show();
}

/** Return true if the field's text names this module: a group, a whole path or its end. */
function targets(value, { key, name }) {
  const words = value.split(',').map((word) => word.trim()).filter(Boolean);
  return words.some((word) => word === 'all-linear' || key === word || key.endsWith(`.${word}`)
    || (word === 'attention' && /att/.test(name)) || (word === 'mlp' && !/att/.test(name)));
}

customElements.define('studio-launch', Launch);
customElements.define('studio-notes', Notes);
customElements.define('studio-preflight', Preflight);
customElements.define('studio-presets', Presets);
customElements.define('studio-upload', Upload);
