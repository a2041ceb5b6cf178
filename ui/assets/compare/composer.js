// The composer: one prompt for all lanes, and sampling settings shared by all or set per lane. Enter
// sends, Shift+Enter breaks the line, Escape stops.

import { button, h, t } from '../core/dom.js';
import { options, select } from '../core/form.js';

const KEY = 'studio.sampling';
const SHOWN = ['max_new_tokens', 'temperature', 'top_p', 'top_k', 'repetition_penalty', 'seed',
  'chat_template_kwargs'];

/** The shared settings to begin with: those used last, else the defaults of the record (`schema`). */
export function usualSettings(schema) {
  let last = {};
  try { last = JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { /* private window */ }
  const sampling = Object.fromEntries(Object.entries(schema).filter(([name]) => SHOWN.includes(name))
    .map(([name, field]) => [name, last[name] ?? field.default]));
  return { system: last.system ?? '', sampling };
}

export class Composer {
  /** `schema`: the sampling record's fields; `page`: send(prompt), stop(), again(), add(), letters(),
   *  settings(lane or null), changed(). */
  constructor(schema, page) {
    this.page = page;
    this.lane = null;
    this.prompt = h('textarea', { rows: 1, placeholder: t`Ask all lanes …`, label: t`Prompt`,
      testid: 'prompt', oninput: () => this.grow(), onkeydown: (event) => this.key(event) });
    this.send = button(t`Send`, () => this.submit(), 's-primary', { testid: 'send' });
    // A double click on Send ends on Stop.
    this.stop = button(t`Stop`, ({ detail }) => detail !== 2 && page.stop(), 's-danger', { hidden: true, testid: 'stop',
      title: t`Stop every lane (Escape)` });
    this.again = button(t`Ask again`, page.again, '', { hidden: true,
      title: t`Answer the last prompt again, with the current weights and settings (key r)` });
    this.add = button(t`+ Lane`, page.add, '', { title: t`Add a lane`, testid: 'add-lane' });
    this.gear = button(t`Settings`, () => this.toggle(), '', { 'aria-expanded': 'false',
      'aria-controls': 's-sampling' });
    this.system = h('textarea', { rows: 2, placeholder: t`None`, onchange: () => this.take() });
    this.fields = SHOWN.filter((name) => schema[name]).map((name) => {
      const { type, title, description, minimum, maximum, step, default: usual } = schema[name];
      const max = Math.min(maximum ?? Infinity, Number.MAX_SAFE_INTEGER);
      const bounds = { min: minimum ?? step, max, step: step ?? 1 };
      return { name, usual, title, note: description, whole: type === 'integer',
        input: h('input', { ...(type === 'string' ? { type: 'text' } : { type: 'number', ...bounds }),
          onchange: () => this.take() }) };
    });
    this.whose = select([], '', (lane) => this.choose(lane === '' ? null : Number(lane)), { label: t`Whose settings` });
    this.panel = h('div.s-sampling', { hidden: true, id: 's-sampling' },
      h('label', h('span', t`Settings of`), this.whose),
      h('label', h('span', t`System prompt`), this.system),
      this.fields.map(({ title, note, input }) => h('label', { title: note },
        h('span', title), input)));
    this.element = h('div.s-composer', this.panel,
      h('div.s-composer-row', this.prompt, this.send, this.stop, this.again,
        this.add, this.gear));
  }

  /** Show the settings of all lanes (null) or of one. */
  choose(lane) {
    this.lane = lane;
    const { system, sampling } = this.page.settings(lane);
    this.system.value = system;
    for (const { name, usual, input } of this.fields) input.value = sampling[name] ?? usual;
    this.whose.replaceChildren(...options([['', t`all lanes`],
      ...this.page.letters().map((letter, i) => [i, t`lane ${letter} only`])], lane ?? ''));
  }

  take() {
    const sampling = {};
    for (const { name, usual, whole, input } of this.fields) {
      if (input.type === 'text') {
        sampling[name] = input.value.trim();
        continue;
      }
      const value = whole ? Math.round(input.valueAsNumber) : input.valueAsNumber;
      const low = Number(input.min), high = Number(input.max);
      sampling[name] = Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : usual;
    }
    const values = { system: this.system.value.trim(), sampling };
    Object.assign(this.page.settings(this.lane, true), values);
    if (this.lane === null) {
      try { localStorage.setItem(KEY, JSON.stringify({ system: values.system, ...sampling })); }
      catch { /* private window: this page only */ }
    }
    this.choose(this.lane); // what is used is what is shown
    this.page.changed();
  }

  key(event) {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.submit();
    }
    if (event.key === 'Escape') this.page.stop();
  }

  submit() {
    const prompt = this.prompt.value.trim();
    if (!prompt || this.isBusy) return;
    this.fill('');
    this.page.send(prompt);
  }

  fill(words) {
    this.prompt.value = words;
    this.grow();
  }

  grow() {
    this.prompt.style.height = 'auto';
    this.prompt.style.height = `${Math.min(200, this.prompt.scrollHeight + 2)}px`;
  }

  toggle() {
    this.panel.hidden = !this.panel.hidden;
    this.gear.ariaExpanded = !this.panel.hidden;
    if (!this.panel.hidden) this.choose(this.lane);
  }

  busy(on) {
    this.isBusy = on;
    this.send.hidden = on;
    this.stop.hidden = !on;
    this.again.disabled = on;
  }

  ready(started) {
    this.again.hidden = !started;
  }

  more(possible) {
    this.add.hidden = !possible;
  }

  focus() {
    this.prompt.focus({ preventScroll: true });
  }
}
