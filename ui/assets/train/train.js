// The Train page: the form, drawn from the fields of a run, and beside it what it means: what pressing Train
// does, memory and time, the first rows as tokens, the launched run, and the same as a command or a file.

import { askBakeoff } from '../adapters/actions.js';
import { api, button, errorLine, h, newest, Page, quiet, redraw, remember, say, send, short, snippet, t, text, word }
  from '../core/dom.js';
import { box, matcher, searchField } from '../core/form.js';
import { Upload } from '../core/upload.js';
import { planSweep } from '../runs/queue.js';
import { openGuide, Welcome } from './guide.js';
import { Launch } from './launch.js';
import { Methods } from './methods.js';
import { FirstRows, Preflight, Presets } from './preflight.js';
import { idOf, modelsAt, Setting } from './settings.js';

const PARTS = { model: t`Model`, data: t`Data`, train: t`Training` };
const partOf = (path) => (path.includes('.') ? path.split('.')[0] : 'train');

export class Train extends Page {
  async build() {
    const form = await send('/api/train/form', {});
    if (!form) return;
    this.draw(form);
    await this.open({ address: location.search });
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && this.isConnected && !event.repeat
        && !document.querySelector('dialog[open]')) this.go.click(); // ignored while it is busy
    });
  }

  draw({ fields, methods, choices, first }) {
    const make = (field) => new Setting(field, choices[field.name]);
    this.settings = new Map(fields.map((field) => [field.name, make(field)]));
    this.ofMethod = new Map(methods.map((one) => [one.name, one.fields.map(make)]));
    this.titles = new Map(methods.map((one) => [one.name, one.title]));
    this.method = 'lora';
    this.methods = new Methods(methods, (name) => this.choose(name));
    this.upload = new Upload((name) => this.use('data.path', name, name));
    this.preflight = new Preflight(this);
    this.presets = new Presets(this);
    this.rows = new FirstRows(this);
    this.launch = new Launch();
    this.welcome = new Welcome(this);
    if (first) this.welcome.open();
    this.error = errorLine({ testid: 'form-error' });
    this.warnings = h('div.s-warnings', { role: 'status' });
    this.says = h('p.s-says', { testid: 'says' });
    this.same = h('div');
    this.notes = Object.fromEntries(['model', 'data'].map((name) => [name, h('p.s-note', {
      id: `${name}-note` })]));
    modelsAt(() => this.settings.get('model.path').value());
    this.append(h('div.s-train',
      h('h1.s-hidden', t`Train an adapter`),
      h('div.s-form', { oninput: () => this.changed(), onchange: () => this.changed() },
        this.welcome.element, this.presets.element,
        h('section.s-card', h('header.s-row-between', h('h2', t`What to train`),
          h('span.s-actions', button(t`Guided start …`, openGuide), this.upload.element)), this.upload.line,
        h('div.s-pair', ['model', 'data'].map((name) => h('div',
          this.settings.get(`${name}.path`).element, this.notes[name])))),
        h('section.s-card', h('h2', t`Method`), this.methods.element,
          this.mainOfMethod = h('div.s-fields')),
        h('section.s-card', h('h2', t`Training`), h('div.s-fields',
          this.plain().map(({ element }) => element))),
        this.advanced()),
      h('div.s-side', h('section.s-card.s-go',
        this.go = button(t`Train`, () => this.start(), 's-primary', { id: 'train', title: 'Ctrl Enter' }), this.says,
        this.warnings, this.error), this.preflight.element, this.rows.element, this.launch.element, this.same)));
    this.showMethod();
  }

  plain() { return [...this.settings.values()].filter(({ field }) => !field.advanced && !/\.path$/.test(field.name)); }

  advanced() {
    const more = [...this.settings.values()].filter(({ field }) => field.advanced);
    const groups = Map.groupBy(more, ({ field }) => field.heading || PARTS[partOf(field.name)]);
    this.search = searchField(t`Search settings`);
    this.onlyChanged = box();
    this.moreOfMethod = h('div.s-fields');
    this.none = quiet(t`No setting is like this.`);
    const group = (title, body) => h('div.s-group', h('h3', title), body);
    const sift = (event) => { event.stopPropagation(); this.sift(); };
    this.groups = [group('', this.moreOfMethod), ...[...groups].map(([title, some]) => group(title,
      h('div.s-fields', some.map(({ element }) => element))))];
    return h('details.s-card.s-advanced', { id: 'advanced' }, h('summary', h('h2', t`Advanced`),
      this.count = h('span.s-quiet')), h('div.s-sift', { oninput: sift, onchange: sift },
      this.search, h('label.s-check', this.onlyChanged, t`Only changed`)), this.groups, this.none);
  }

  /** The settings of the form as it stands: those of the run and of the chosen method. */
  all() { return [...this.settings.values(), ...this.ofMethod.get(this.method)]; }

  values() {
    const touched = this.all().filter((one) => one.isTouched).map((one) => [one.field.name, one.value()]);
    return { 'method.name': this.method, ...Object.fromEntries(touched) };
  }

  choose(method) {
    this.method = method;
    this.showMethod();
    this.changed();
  }

  showMethod() {
    const own = this.ofMethod.get(this.method), drawn = (advanced) => own.filter(({ field }) =>
      field.advanced === advanced).map(({ element }) => element);
    if (this.drawn !== own) { // else the focus would be lost
      this.drawn = own;
      redraw(this.mainOfMethod, ...drawn(false));
      redraw(this.moreOfMethod, ...drawn(true));
    }
    text(this.groups[0].firstChild, this.titles.get(this.method));
    this.methods.show(this.method);
  }

  /** Show only the settings that apply, and of the advanced ones those that are searched for. */
  sift() {
    const found = matcher(this.search.value), facts = this.found?.facts ?? {};
    const value = (name) => String((this.settings.get(name) ?? this.settings.get(`train.${name}`)
      ?? this.settings.get(`data.${name}`))?.value() ?? this.method);
    for (const { field, element } of this.all()) {
      const changed = element.hasAttribute('data-changed');
      const applies = changed || Object.entries(field.when).every(([other, wanted]) =>
        (facts[other] ?? [value(other)]).some((one) => wanted.includes(one)));
      element.hidden = !applies || (field.advanced && !((!this.onlyChanged.checked || changed)
        && found(field.title, field.help, field.name)));
    }
    for (const group of this.groups) group.hidden = ![...group.lastChild.children].some((one) => !one.hidden);
    this.none.hidden = this.groups.some((one) => !one.hidden);
    const many = this.all().filter(({ field, element }) =>
      field.advanced && element.hasAttribute('data-changed')).length;
    text(this.count, many ? t`${many} changed` : '');
  }

  changed() {
    clearTimeout(this.timer);
    if (this.opening) return; // what is typed meanwhile is judged then
    this.timer = setTimeout(() => this.judge(), 120);
  }

  /** Ask what a form means. */
  ask(form) {
    clearTimeout(this.timer);
    this.asking = api('/api/train/judge', form).catch((error) => ({ error: { text: error.message } }));
    return newest(this, this.asking);
  }

  async judge() {
    const found = await this.ask({ values: this.values() });
    if (found) this.take(found);
  }

  /** Return what the form means as it stands, once it is filled; null if it has an error, which is shown. */
  async settled() {
    while (this.opening) await this.opening;
    this.judge();
    let asking, found;
    do { asking = this.asking; found = await asking; } while (asking !== this.asking); // changed meanwhile
    return found.error ? null : found;
  }

  /** Fill the form: from an address, or with a preset or values laid over it. */
  async open(asked) {
    while (this.opening) await this.opening;
    let typed = false;
    try { typed = await (this.opening = this.fill(asked)); } finally { this.opening = null; }
    if (typed) this.changed();
  }

  /** Return true if fields were changed meanwhile; they are kept. */
  async fill({ address, values, preset }) {
    const before = new Map([...this.settings.values(), ...[...this.ofMethod.values()].flat()].map(
      (setting) => [setting, setting.value()]));
    const { method } = this;
    const found = await this.ask(address === undefined ? { values: { ...this.values(), ...values }, preset }
      : { address });
    if (!found) return false;
    const { error, values: filled = {} } = found, named = filled['method.name'];
    const chosen = this.method !== method, refused = error && address === undefined;
    if (!chosen && !refused) this.method = this.ofMethod.has(named) ? named : 'lora';
    const kept = this.all().filter((setting) => setting.value() !== before.get(setting));
    for (const setting of this.all()) {
      if (!kept.includes(setting) && !refused) setting.fill(filled[setting.field.name]);
    }
    this.showMethod();
    this.take(found);
    return kept.length > 0 || chosen;
  }

  take(found) {
    const { error } = found;
    say(this.error, error?.text);
    this.mark(error?.field);
    this.preflight.take(error ? null : found);
    if (error) {
      redraw(this.warnings);
      this.sift(); // the field that is wrong may be one that the loss just chosen brings
      return this.rows.take(null);
    }
    this.found = found;
    remember({ set: found.set, preset: null });
    for (const name of ['model', 'data']) {
      text(this.notes[name], found[name]);
      this.notes[name].classList.toggle('s-wrong', Boolean(found[`${name}_wrong`]));
    }
    if (found.facts.model.includes('hub') && !found.model_wrong) {
      const address = `/models?q=${encodeURIComponent(found.values['model.path'])}&hub=1`;
      this.notes.model.append(' ', h('a', { href: address }, t`Look at it on the Models page`));
    }
    for (const one of this.all()) one.mark(one.field.name in found.values || one.isTouched, undefined);
    redraw(this.warnings, ...found.warnings.map((words) => h('p.s-warning', words)));
    this.methods.show(this.method);
    this.methods.size(found.sizes);
    this.sift();
    this.rows.take(found);
    return this.showSame(found);
  }

  mark(field) {
    for (const one of this.all()) one.wrong(one.field.name === field);
    const node = field ? document.getElementById(idOf(field)) : null;
    if (node?.closest('details')) node.closest('details').open = true;
  }

  /** What the estimate knows: automatic values, and what pressing Train does; nothing without one. */
  know(estimate) {
    for (const one of this.all()) {
      one.mark(one.element.hasAttribute('data-changed'), estimate?.auto?.[one.field.name] ?? '');
    }
    text(this.says, estimate ? this.sentence(estimate) : '');
    this.rows.cut(estimate?.cut);
  }

  sentence({ rows, held_out: held, total_steps: steps, epochs, device, unknown }) {
    const { values = {} } = this.found ?? {}, title = this.titles.get(this.method);
    const own = (name) => this.all().find((one) => one.field.name === name)?.value();
    const what = `${title}${own('method.r') ? t` of rank ${own('method.r')}` : ''}${
      values['train.loss'] ? t` by ${values['train.loss'].toUpperCase()}` : ''}`;
    const data = short(own('data.path')).replace('starter:', '');
    if (unknown) return t`Queues ${what} on ${short(own('model.path'))} with ${data}.`;
    return t`Trains ${what} on ${short(own('model.path'))} with ${rows} rows of ${data}, ${held} more held out: ${
      steps} steps (${epochs} epochs) on ${device.replaceAll(',', ', ')}, about ${this.preflight.time}.`;
  }

  showSame({ command, yaml }) {
    redraw(this.same, h('details.s-same', { open: localStorage.getItem('studio.same') === '1',
      ontoggle: (e) => localStorage.setItem('studio.same', e.target.open ? '1' : '0') },
    h('summary', t`The same as a command or a file`), snippet(t`Command line`, command),
    snippet('spec.yaml', yaml)),
    h('div.s-actions',
      button(t`Sweep: several values of some fields …`, this.asked((set) => planSweep(null, set)), 's-tool'),
      button(t`Bake-off: these settings with several methods …`, this.asked((set) =>
        askBakeoff({ set, impossible: this.impossible() })), 's-tool'),
      button(t`Start over`, () => { this.launch.forget(); this.open({ address: '' }); }, 's-tool')));
  }

  /** What a button does with the form as it stands. */
  asked(act) {
    return async () => {
      const found = await this.settled();
      if (found) await act(found.set);
    };
  }

  impossible() { return Object.keys(this.found.sizes).filter((name) => !this.found.sizes[name].parameters); }

  use(path, value, label) {
    this.settings.get(path).offer(value, label);
    this.settings.get(path).fill(value);
    this.changed();
  }

  async start() {
    const found = await this.settled();
    if (!found) return;
    const twin = this.launch.twin(found.set);
    const asked = () => t`“${twin.name}” with these very settings is ${word(twin.state)}. Train them once more?`;
    if (twin && !window.confirm(asked())) return;
    this.welcome.hide();
    try {
      this.launch.follow(await api('/api/do/train', { set: found.set }), found.set, this.preflight.seconds);
    } catch (error) {
      say(this.error, error.message);
      this.mark(error.field);
    }
  }
}

customElements.define('studio-train', Train);
