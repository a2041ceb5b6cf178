// Rows page by page, with ticks to drop or keep; and the steps that make a new dataset of this one.

import { button, count, errorLine, h, quiet, say, send, text } from '../core/dom.js';
import { Fields, labelled } from '../core/form.js';
import { rendered } from './import.js';

const PAGE = 20;

export class Rows {
  constructor(page) {
    this.page = page;
    this.ticked = new Set();
    this.offset = 0;
    this.where = h('span', { class: 's-quiet' });
    this.at = h('input', { type: 'number', min: 1, value: '1', 'aria-label': 'Go to row', onchange: () =>
      this.go((Number(this.at.value) || 1) - 1) });
    this.actions = h('span', { class: 's-actions' });
    this.error = errorLine();
    this.list = h('div', { class: 's-preview', 'data-testid': 'rows' });
    const turn = (label, by, name) => button(label, () => this.go(this.offset + by), '', { 'aria-label': name });
    this.element = h('div', { class: 's-stack' }, h('div', { class: 's-xray-bar' }, turn('‹', -PAGE, 'Previous page'),
      h('label', {}, 'Row ', this.at), turn('›', PAGE, 'Next page'), this.where, this.actions), this.error, this.list);
    this.go(0);
  }

  async go(offset) {
    const { name, rows } = this.page.found;
    this.offset = Math.min(Math.max(0, offset), Math.max(0, rows - 1));
    const found = await send(`/api/data/${name}/rows?offset=${this.offset}&limit=${PAGE}`);
    if (!found) return;
    this.at.value = this.offset + 1;
    text(this.where, `to ${count(this.offset + found.rows.length)} of ${count(found.total)}`);
    this.list.replaceChildren(...found.rows.map((row) => this.row(row)));
  }

  row(row) {
    const { number, line, part } = row;
    return h('article', { class: 's-rendered' }, h('header', {}, h('label', {}, h('input', { type: 'checkbox',
      class: 's-box', checked: this.ticked.has(number), 'aria-label': `Row ${number}`,
      onchange: (event) => this.tick(number, event.target.checked) }),
    ` row ${count(number)} · line ${count(line)}${part === 'validation' ? ' · held out' : ''}`)), rendered(row));
  }

  tick(number, on) {
    this.ticked[on ? 'add' : 'delete'](number);
    const words = `${this.ticked.size} selected row${this.ticked.size > 1 ? 's' : ''}`;
    this.actions.replaceChildren(...(this.ticked.size ? [button(`Drop ${words}`, () => this.apply(false)),
      button(`Keep only ${words}`, () => this.apply(true))] : []));
  }

  async apply(keep) {
    const rows = [...this.ticked].sort((a, b) => a - b);
    const refused = await submitStep(this.page, { kind: 'drop', rows, keep });
    say(this.error, refused);
    if (!refused) this.actions.replaceChildren(h('span', { class: 's-quiet', role: 'status' },
      'Making the new dataset …'));
  }
}

/** Queue a step; returns the error's sentence, or nothing. */
export async function submitStep(page, step, name = '') {
  try {
    await page.submit(`/api/data/${page.found.name}/steps`, { step, name });
    return '';
  } catch (error) { return error.message; }
}

const OPERATORS = [['present', 'is filled'], ['absent', 'is empty'], ['equals', 'equals'],
  ['not_equals', 'differs from'], ['contains', 'contains'], ['not_contains', 'does not contain'],
  ['greater', 'is greater than'], ['less', 'is less than']];
const whole = (name, title, more = {}) => ({ name, title, type: 'number', ge: 0, default: 0, ...more });

/** The steps that make a new dataset: title, help, fields, and the step of their values. */
const steps = (columns) => [
  { kind: 'split', title: 'Split', help: 'Hold rows out of training for evaluation. Equal rows stay on one side.',
    fields: [
    whole('fraction', 'Share (%)', { default: 10, le: 99 }), whole('count', 'or rows', { placeholder: 'by share',
      empty: true }),
    { name: 'group_by', title: 'Keep together by', choices: columns }, whole('seed', 'Seed')],
  step: ({ fraction, ...values }) => ({ ...values, fraction: values.count ? 0 : fraction / 100 }) },
  { kind: 'filter', title: 'Filter', help: 'Keep the rows that meet all conditions.', fields: [
    whole('min_characters', 'Shortest (characters)', { placeholder: 'any', empty: true }),
    whole('max_characters', 'Longest (characters)', { placeholder: 'any', empty: true }),
    { name: 'column', title: 'Column', choices: columns }, { name: 'operator', title: 'Condition', choices: OPERATORS },
    { name: 'value', title: 'Value' }] },
  { kind: 'dedupe', title: 'Deduplicate', help: 'Keep the first of equal rows.', fields: [
    { name: 'near', title: 'nearly equal rows too', type: 'boolean' }] },
  { kind: 'drop', title: 'Drop rows', help: 'By number, from 1; or tick them under Rows.', fields: [
    { name: 'rows', title: 'Rows', placeholder: '3, 17, 40-52', more: { 'data-testid': 'drop-rows' } },
    { name: 'keep', title: 'keep only these', type: 'boolean' }], step: ({ rows, keep }) => ({ rows: numbers(rows),
      keep }) },
];

export class Change {
  constructor(page) {
    this.page = page;
    this.error = errorLine({ 'data-testid': 'change-error' });
    this.status = h('p', { class: 's-quiet', role: 'status' });
    this.name = h('input', { placeholder: `like ${page.found.name}`, 'data-testid': 'change-name' });
    const columns = ['', ...Object.keys(page.found.columns).slice(0, 200)].map((name) => [name, name || 'none']);
    this.element = h('div', { class: 's-stack' },
      quiet('Each step makes a new dataset and leaves this one unchanged, so this one is the undo. The command line '
        + 'has the same steps: ', h('code', {}, 'studio data'), '.'),
      h('div', { class: 's-lens' }, labelled('Name of the new dataset', this.name)), this.status, this.error,
      h('div', { class: 's-changes' }, steps(columns).map((one) => this.card(one))));
  }

  card({ kind, title, help, fields, step = (values) => values }) {
    const form = new Fields(fields, { kind: 's-lens' });
    return h('form', { class: 's-change', onsubmit: async (event) => {
      event.preventDefault();
      say(this.error, '');
      const refused = await submitStep(this.page, { kind, ...step(form.value()) }, this.name.value);
      say(this.error, refused);
      if (!refused) text(this.status, 'The step is queued; the new dataset opens when it is made.');
    } }, h('h3', {}, title), quiet(help), form.element,
    h('button', { type: 'submit', class: 's-button', 'data-testid': `change-${kind}` }, title));
  }
}

/** "3, 17, 40-52" as numbers. */
export function numbers(words) {
  return words.split(/[\s,;]+/).filter(Boolean).flatMap((part) => {
    const [low, high = low] = part.split('-').map(Number);
    return Array.from({ length: Math.min(100000, Math.max(0, high - low + 1)) }, (_, at) => low + at);
  });
}
