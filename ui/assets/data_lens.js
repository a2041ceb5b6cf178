// Through which model a dataset is seen: the bar above report and X-ray. The address keeps it.

import { h, query, remember } from './dom.js';

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

export const options = (choices, chosen) => choices.map(([value, label]) =>
  h('option', { value, selected: value === chosen }, label ?? value));
