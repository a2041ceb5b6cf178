// Rows page by page, with ticks to drop or keep; and the steps that make a new dataset of this one.

import { api, button, count, errorLine, h, newest, quiet, redraw, say, send, t, text, toast } from '../core/dom.js';
import { actionForm, box } from '../core/form.js';
import { rendered } from './import.js';

const PAGE = 20;

export class Rows {
  constructor(page) {
    this.page = page;
    this.ticked = new Set();
    this.offset = 0;
    this.where = h('span.s-quiet');
    this.at = h('input', { type: 'number', min: 1, value: '1', label: t`Go to row`, onchange: () =>
      this.go((Number(this.at.value) || 1) - 1) });
    this.actions = h('span.s-actions');
    this.list = h('div.s-preview', { testid: 'rows' });
    const turn = (label, by, name) => button(label, () => this.go(this.offset + by), '', { label: name });
    this.element = h('div.s-stack', h('div.s-xray-bar', turn('‹', -PAGE, t`Previous page`),
      h('label', t`Row `, this.at), turn('›', PAGE, t`Next page`), this.where, this.actions), this.list);
    this.go(0);
  }

  async go(offset) {
    const { name, rows } = this.page.found;
    this.offset = Math.min(Math.max(0, offset), Math.max(0, rows - 1));
    const found = await newest(this, send(`/api/data/${name}/rows?offset=${this.offset}&limit=${PAGE}`));
    if (!found) return;
    this.at.value = this.offset + 1;
    text(this.where, t`to ${count(this.offset + found.rows.length)} of ${count(found.total)}`);
    redraw(this.list, ...found.rows.map((row) => this.row(row)));
  }

  row(row) {
    const { number, line, part } = row;
    return h('article.s-rendered', h('header', h('label', box({ checked: this.ticked.has(number),
      label: t`Row ${number}`, onchange: (event) => this.tick(number, event.target.checked) }),
    t` row ${count(number)} · line ${count(line)}${part === 'validation' ? t` · held out` : ''}`)), rendered(row));
  }

  tick(number, on) {
    this.ticked[on ? 'add' : 'delete'](number);
    const words = t`${this.ticked.size} selected row${this.ticked.size > 1 ? 's' : ''}`;
    redraw(this.actions, ...(this.ticked.size ? [button(t`Drop ${words}`, () => this.apply(false)),
      button(t`Keep only ${words}`, () => this.apply(true))] : []));
  }

  async apply(keep) {
    const rows = [...this.ticked].sort((a, b) => a - b);
    this.page.openResult(await api('/api/do/data.drop', { name: this.page.found.name, row: rows, keep }));
    redraw(this.actions, h('span.s-quiet', { role: 'status' }, t`Making the new dataset …`));
  }
}

const STEPS = ['split', 'filter', 'dedupe', 'drop'];

/** The steps that make a new dataset of this one, each as a form of its action. */
export class Change {
  constructor(page) {
    this.page = page;
    this.error = errorLine({ testid: 'change-error' });
    this.status = quiet({ role: 'status' });
    this.cards = h('div.s-changes');
    this.element = h('div.s-stack', { oninput: () => text(this.status, '') },
      quiet(t`Each step makes a new dataset and leaves this one unchanged, so this one is the undo. The command line
        has the same steps: `, h('code', 'studio data'), '.'), this.status, this.error, this.cards);
    this.draw();
  }

  async draw() {
    const { name, columns } = this.page.found;
    const settings = { fixed: { name }, known: { columns: Object.keys(columns).slice(0, 200) }, kind: 's-lens',
      values: { fraction: 0.1 } };
    const forms = await Promise.all(STEPS.map((step) => actionForm(`data.${step}`, settings)));
    redraw(this.cards, ...forms.map((form, i) => h('form.s-change', { onsubmit: async (event) => {
      event.preventDefault();
      say(this.error, '');
      try {
        this.page.openResult(await form.submit(), (words) => {
          text(this.status, '');
          if (this.error.isConnected) say(this.error, words); else toast(words, 'error');
        });
        text(this.status, t`The step is queued; the new dataset opens when it is made.`);
      } catch (error) { say(this.error, error.message); }
    } }, h('h2', form.title), quiet(form.help), form.element,
    h('button', { type: 'submit', class: 's-button', testid: `change-${STEPS[i]}` }, form.title))));
  }
}
