// Rows page by page, with ticks to drop or keep; and the steps that make a new dataset of this one.

import { api, button, count, h, text } from '../core/dom.js';
import { options } from '../core/form.js';
import { rendered } from './import.js';
import { labelled } from './xray.js';

const PAGE = 20;
const OPERATORS = [['present', 'is filled'], ['absent', 'is empty'], ['equals', 'equals'], ['not_equals', 'differs from'],
  ['contains', 'contains'], ['not_contains', 'does not contain'], ['greater', 'is greater than'], ['less', 'is less than']];

export class Rows {
  constructor(page) {
    this.page = page;
    this.ticked = new Set();
    this.offset = 0;
    this.where = h('span', { class: 's-quiet' });
    this.at = h('input', { type: 'number', min: 1, value: '1', 'aria-label': 'Go to row', onchange: () =>
      this.go(Math.max(0, (Number(this.at.value) || 1) - 1)) });
    this.acts = h('span', { class: 's-actions' });
    this.error = h('p', { class: 's-error', role: 'alert', hidden: true });
    this.list = h('div', { class: 's-preview', 'data-testid': 'rows' });
    this.element = h('div', { class: 's-stack' }, h('div', { class: 's-xray-bar' },
      button('‹', () => this.go(this.offset - PAGE), '', { 'aria-label': 'Page before' }),
      h('label', {}, 'Row ', this.at), button('›', () => this.go(this.offset + PAGE), '', { 'aria-label': 'Next page' }),
      this.where, this.acts), this.error, this.list);
    this.go(0);
  }

  async go(offset) {
    const { name, rows } = this.page.found;
    this.offset = Math.min(Math.max(0, offset), Math.max(0, rows - 1));
    try {
      const made = await api(`/api/data/${name}/rows?offset=${this.offset}&limit=${PAGE}`);
      this.at.value = this.offset + 1;
      text(this.where, `to ${count(this.offset + made.rows.length)} of ${count(made.total)}`);
      this.list.replaceChildren(...made.rows.map((row) => this.row(row)));
    } catch (error) { this.fail(error.message); }
  }

  row(row) {
    return h('article', { class: 's-rendered' },
      h('header', {}, h('label', {}, h('input', { type: 'checkbox', class: 's-box', checked: this.ticked.has(row.number),
        'aria-label': `Row ${row.number}`, onchange: (event) => this.tick(row.number, event.target.checked) }),
      ` row ${count(row.number)} · line ${count(row.line)}${row.part === 'validation' ? ' · held out' : ''}`)),
      rendered(row));
  }

  tick(number, on) {
    if (on) this.ticked.add(number); else this.ticked.delete(number);
    const words = `${this.ticked.size} ticked row${this.ticked.size > 1 ? 's' : ''}`;
    this.acts.replaceChildren(...(this.ticked.size ? [button(`Drop ${words}`, () => this.apply(false)),
      button(`Keep only ${words}`, () => this.apply(true))] : []));
  }

  async apply(keep) {
    const rows = [...this.ticked].sort((a, b) => a - b);
    try {
      await this.page.submit(`/api/data/${this.page.found.name}/steps`, { step: { kind: 'drop', rows, keep } });
      this.acts.replaceChildren(h('span', { class: 's-quiet', role: 'status' }, 'A new dataset is being made …'));
    } catch (error) { this.fail(error.message); }
  }

  fail(words) {
    text(this.error, words);
    this.error.hidden = false;
  }
}

export class Change {
  constructor(page) {
    this.page = page;
    this.error = h('p', { class: 's-error', role: 'alert', hidden: true, 'data-testid': 'change-error' });
    this.status = h('p', { class: 's-quiet', role: 'status' });
    this.name = h('input', { placeholder: `like ${page.found.name}`, 'data-testid': 'change-name' });
    this.element = h('div', { class: 's-stack' },
      h('p', { class: 's-quiet' }, 'Each step makes a new dataset and leaves this one as it is: the way back is to open '
        + 'this one again. The command line does the same with ', h('code', {}, 'studio data'), '.'),
      h('div', { class: 's-lens' }, labelled('Name of the new dataset', this.name)), this.status, this.error,
      h('div', { class: 's-changes' }, this.split(), this.filter(), this.dedupe(), this.drop()));
  }

  card(title, words, act, ...content) {
    return h('form', { class: 's-change', onsubmit: (event) => { event.preventDefault(); this.apply(act()); } },
      h('h3', {}, title), h('p', { class: 's-quiet' }, words), h('div', { class: 's-lens' }, content),
      h('button', { type: 'submit', class: 's-button', 'data-testid': `change-${title.split(' ')[0].toLowerCase()}` }, title));
  }

  split() {
    const share = number('10', { max: 99, step: 'any' }), rows = number('', { placeholder: 'by share' });
    const seed = number('0'), group = this.column('none');
    return this.card('Split', 'Hold rows out of training, to measure on. Equal rows stay on one side.', () => ({
      kind: 'split', fraction: rows.value ? 0 : Number(share.value) / 100, count: Number(rows.value) || 0,
      group_by: group.value, seed: Number(seed.value) || 0,
    }), labelled('Share (%)', share), labelled('or rows', rows), labelled('Keep together by', group), labelled('Seed', seed));
  }

  filter() {
    const low = number('', { placeholder: 'any' }), high = number('', { placeholder: 'any' });
    const column = this.column('none'), value = h('input', {});
    const operator = h('select', {}, options(OPERATORS, 'present'));
    return this.card('Filter', 'Keep the rows that meet all of this.', () => ({
      kind: 'filter', min_characters: Number(low.value) || 0, max_characters: Number(high.value) || 0,
      column: column.value, operator: operator.value, value: value.value,
    }), labelled('Shortest (characters)', low), labelled('Longest (characters)', high), labelled('Column', column),
    labelled('Condition', operator), labelled('Value', value));
  }

  dedupe() {
    const near = h('input', { type: 'checkbox', class: 's-box' });
    return this.card('Deduplicate', 'Keep the first of equal rows.', () => ({ kind: 'dedupe', near: near.checked }),
      h('label', {}, near, ' nearly equal rows too'));
  }

  drop() {
    const rows = h('input', { placeholder: '3, 17, 40-52', 'data-testid': 'drop-rows' });
    const keep = h('input', { type: 'checkbox', class: 's-box' });
    return this.card('Drop rows', 'By number, from 1; or tick them under Rows.', () => ({
      kind: 'drop', rows: numbers(rows.value), keep: keep.checked }), labelled('Rows', rows),
    h('label', {}, keep, ' keep only these'));
  }

  column(none) {
    return h('select', {}, options([['', none], ...Object.keys(this.page.found.columns).slice(0, 200).map((c) => [c])], ''));
  }

  async apply(step) {
    this.error.hidden = true;
    try {
      await this.page.submit(`/api/data/${this.page.found.name}/steps`, { step, name: this.name.value });
      text(this.status, 'The step is in the queue; the new dataset opens when it is made.');
    } catch (error) {
      text(this.error, error.message);
      this.error.hidden = false;
    }
  }
}

const number = (value, more = {}) => h('input', { type: 'number', min: 0, value, ...more });

/** "3, 17, 40-52" as numbers. */
function numbers(words) {
  return words.split(/[\s,;]+/).filter(Boolean).flatMap((part) => {
    const [low, high] = part.split('-').map(Number);
    if (high === undefined) return [low];
    return Array.from({ length: Math.min(100000, Math.max(0, high - low + 1)) }, (_, at) => low + at);
  });
}
