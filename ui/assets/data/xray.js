// The X-ray: rows exactly as the trainer sees them, token by token; and the bar that selects the model
// through which report and X-ray see a dataset.

import { api, button, count, h, query, remember, text } from '../core/dom.js';
import { options } from '../core/form.js';

const PICKS = { first: 'First', longest: 'Longest', shortest: 'Shortest', random: 'Random' };
const STATES = { trained: 'trained', masked: 'read, not trained', truncated: 'cut off', special: 'special' };

export class XRay {
  constructor(page) {
    this.page = page;
    this.row = Number(query().get('row')) || 1;
    this.number = h('input', { type: 'number', min: 1, value: String(this.row), 'aria-label': 'Row number',
      'data-testid': 'xray-row', onchange: () => this.jump(Number(this.number.value) || 1) });
    this.summary = h('p', { class: 's-quiet', role: 'status', 'data-testid': 'xray-summary' });
    this.tokens = h('div', { class: 's-tokens', 'data-testid': 'tokens' });
    this.decoded = h('pre', { class: 's-decoded' });
    this.element = h('div', { class: 's-stack' },
      h('div', { class: 's-xray-bar' },
        h('div', { class: 's-segments' }, Object.entries(PICKS).map(([pick, label]) =>
          h('button', { type: 'button', 'data-testid': `pick-${pick}`, onclick: () => this.ask({ pick }) }, label))),
        button('‹', () => this.jump(this.row - 1), '', { 'aria-label': 'Row before' }),
        h('label', {}, 'Row ', this.number, ` of ${count(page.found.rows)}`),
        button('›', () => this.jump(this.row + 1), '', { 'aria-label': 'Next row' }),
        h('span', { class: 's-xray-legend' }, Object.entries(STATES).map(([state, words]) =>
          h('span', {}, h('i', { class: 's-token', 'data-state': state === 'special' ? 'masked' : state,
            'data-special': state === 'special' }, 'Aa'), words)))),
      this.summary,
      h('div', { class: 's-xray' }, this.tokens, this.decoded));
    this.jump(this.row);
  }

  jump(row) {
    return this.ask({ row: Math.min(Math.max(1, row), Math.max(1, this.page.found.rows)) });
  }

  async ask(what) {
    const asked = this.asked = {};
    const seed = what.pick === 'random' ? { seed: Math.floor(Math.random() * 1e9) } : {};
    try {
      const made = await api(`/api/data/${this.page.found.name}/xray?${this.page.lens.query({ ...what, ...seed })}`);
      if (asked !== this.asked) return;
      if (made.job) {
        this.say('This is much text: a job counts its tokens first, once. The list on the left shows how far it is.');
        this.page.await(made, () => this.ask(what), (words) => this.say(words));
        return;
      }
      this.show(made.rows[0]);
    } catch (error) { if (asked === this.asked) this.say(error.message); }
  }

  say(words) {
    text(this.summary, words);
    this.tokens.replaceChildren();
    text(this.decoded, '');
  }

  show(row) {
    this.row = row.row;
    this.number.value = row.row;
    remember({ row: row.row === 1 ? null : row.row });
    if (row.problem) return this.say(`Line ${count(row.line)} is dropped: ${row.problem}`);
    const part = row.num_tokens ? Math.round((100 * row.num_trained) / row.num_tokens) : 0;
    text(this.summary, `line ${count(row.line)} · ${count(row.num_tokens)} tokens · ${count(row.num_trained)} trained `
      + `(${part}\u202f%) · ${count(row.num_truncated)} cut off`
      + (row.tokens.length < row.num_tokens ? ` · the first ${count(row.tokens.length)} are shown` : ''));
    this.tokens.replaceChildren(...row.tokens.map((token) => h('span', { class: 's-token', 'data-state': token.state,
      'data-special': token.special, title: `${token.id} · ${STATES[token.state]}${token.special ? ' · special' : ''}` },
    visible(token.text))));
    text(this.decoded, row.text);
    return undefined;
  }
}

/** Line ends and parts of a character are shown too: they are tokens like others. */
const visible = (words) => (words === '' ? '·' : words.replaceAll('\n', '↵\n'));

const KNOBS = {
  train_on: { label: 'Train on', usual: 'assistant', choices: [['assistant', 'every answer'],
    ['last', 'the last answer'], ['all', 'everything']] },
  chat_template: { label: 'Chat template', usual: 'auto', choices: [['auto', 'the model\'s own'],
    ['chatml', 'ChatML'], ['alpaca', 'Alpaca'], ['vicuna', 'Vicuna'], ['plain', 'plain']] },
};

export class Lens {
  constructor(models, changed) {
    this.values = { model: 'starter', max_length: '1024', train_on: 'assistant', chat_template: 'auto' };
    this.usual = { ...this.values };
    for (const name in this.values) this.values[name] = query().get(name) ?? this.values[name];
    const set = (name) => (event) => {
      this.values[name] = event.target.value.trim() || this.usual[name];
      remember({ [name]: this.values[name] === this.usual[name] ? null : this.values[name] });
      changed();
    };
    const list = h('datalist', { id: 'lens-models' }, models.map(([label, value]) =>
      h('option', { value }, label)));
    this.element = h('div', { class: 's-lens' },
      labelled('Model', h('input', { list: 'lens-models', value: this.values.model, onchange: set('model'),
        'data-testid': 'lens-model' }), list),
      labelled('Maximum length', h('input', { type: 'number', min: 8, value: this.values.max_length,
        onchange: set('max_length'), 'data-testid': 'lens-length' })),
      Object.entries(KNOBS).map(([name, knob]) => labelled(knob.label,
        h('select', { onchange: set(name) }, options(knob.choices, this.values[name])))));
  }

  query(more = {}) {
    return new URLSearchParams({ ...this.values, ...more }).toString();
  }

  /** The address of the Train page with this dataset and these settings. */
  train(name) {
    const set = [`data.path=${name}`, ...(this.values.model === 'starter' ? [] : [`model.path=${this.values.model}`]),
      ...['max_length', 'train_on', 'chat_template'].filter((field) => this.values[field] !== this.usual[field])
        .map((field) => `data.${field}=${this.values[field]}`)];
    return '/?' + new URLSearchParams(set.map((one) => ['set', one])).toString();
  }
}

export const labelled = (label, ...inputs) => h('label', { class: 's-labelled' }, h('span', {}, label), inputs);
