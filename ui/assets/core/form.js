// Dialogs and forms drawn from the fields of a record: {name, title, help, type, default, ge, le, choices,
// advanced, unit}. Types: text, lines, integer, number, boolean, list; `choices` makes a select. `empty`
// shows a default as an empty field.

import { button, errorLine, h, say } from './dom.js';
import { poke } from './live.js';

/** A modal form. `submit()` may return a promise; its error is shown and keeps the dialog open. Without
 *  `submit` the dialog only informs. */
export function dialog(title, body, label, submit) {
  const wrong = errorLine();
  const go = h('button', { class: 's-button s-primary', type: 'submit' }, label);
  const node = h('dialog', { class: 's-dialog', 'aria-label': title, onclose: () => node.remove() },
    h('form', { method: 'dialog', onsubmit: async (event) => {
      event.preventDefault();
      go.disabled = true;
      say(wrong, '');
      try {
        await submit?.();
        node.close();
        poke();
      } catch (error) { say(wrong, error.message); }
      go.disabled = false;
    } }, h('h2', {}, title), body, wrong, h('div', { class: 's-actions s-dialog-end' },
      button('Close', () => node.close()), submit && go)));
  // Beside the page's element: gradio's container has resets that would reach it.
  (document.querySelector('studio-adapters') ?? document.body).append(node);
  node.showModal();
  return node;
}

export const labelled = (title, control, note = '') => h('label', { class: 's-labelled' },
  h('span', {}, title), control, note && h('span', { class: 's-quiet' }, note));

export const options = (choices, chosen) => choices.map((one) => {
  const [value, label] = Array.isArray(one) ? one : [one, one];
  return h('option', { value, selected: [].concat(chosen).includes(value) }, label ?? value);
});

export const select = (choices, value, changed, props = {}) => h('select', { ...props,
  onchange: (event) => changed?.(event.target.value) }, options(choices, value));

/** The control of one field; `read(control, field)` gives its value. */
export function control(field, value = (field.empty ? '' : field.default) ?? '') {
  const { type, choices, placeholder, required, more } = field;
  if (type === 'boolean') return h('input', { type: 'checkbox', class: 's-box', checked: Boolean(value), ...more });
  if (type === 'list') {
    return h('select', { multiple: true, size: Math.min(5, Math.max(2, choices.length)), ...more }, options(choices, value));
  }
  if (choices) return select(choices, value, null, more);
  const props = { placeholder, required, autocomplete: 'off', spellcheck: 'false', ...more };
  if (type === 'lines') {
    const area = h('textarea', { rows: field.rows ?? 4, maxlength: field.max_length, ...props });
    area.value = value;
    return area;
  }
  const numeric = type === 'integer' || type === 'number';
  const step = field.step ?? (type === 'integer' ? 1 : 'any');
  return h('input', numeric ? { type: 'number', min: field.ge, max: field.le, step, ...props, value: String(value) }
    : { type: 'text', maxlength: field.max_length, value: String(value), ...props });
}

export function read(node, { type, name, title, default: usual }) {
  if (type === 'boolean') return node.checked;
  if (type === 'list') return [...node.selectedOptions].map((option) => option.value);
  if (type !== 'integer' && type !== 'number') return node.value.trim();
  if (node.value === '' && usual !== undefined) return usual;
  if (!Number.isFinite(node.valueAsNumber)) throw new Error(`${title ?? name} must be a number.`);
  return node.valueAsNumber;
}

/** The fields of a record as controls. `values` override defaults; `nodes` are own controls by name, as
 *  {element, value()}; `shown(values)` returns the names of the fields that apply. */
export class Fields {
  constructor(fields, { values = {}, nodes = {}, shown = null, changed = null, kind = 's-dialog-parts' } = {}) {
    Object.assign(this, { fields, nodes, shown });
    this.controls = new Map(fields.filter(({ name }) => !nodes[name]).map((field) =>
      [field.name, control(field, values[field.name])]));
    this.rows = new Map(fields.map((field) => [field.name, nodes[field.name]?.element ?? this.row(field)]));
    const plain = fields.filter((field) => !field.advanced), more = fields.filter((field) => field.advanced);
    const rows = (some) => some.map(({ name }) => this.rows.get(name));
    this.element = h('div', { class: kind, onchange: () => { this.show(); changed?.(); } }, rows(plain),
      more.length > 0 && h('details', { class: 's-same' }, h('summary', {}, 'Advanced'),
        h('div', { class: 's-dialog-parts' }, rows(more))));
    this.show();
  }

  row(field) {
    const node = this.controls.get(field.name), title = field.title ?? field.name;
    if (field.type === 'boolean') return h('label', { class: 's-check', title: field.help }, node, title);
    return labelled(field.unit ? `${title} (${field.unit})` : title, node, field.help);
  }

  show() {
    if (!this.shown) return;
    const wanted = new Set(this.shown(this.raw()));
    for (const [name, row] of this.rows) row.hidden = !wanted.has(name);
  }

  raw() {
    return Object.fromEntries([...this.controls].map(([name, node]) => [name, node.value]));
  }

  value() {
    const applies = this.fields.filter(({ name }) => !this.rows.get(name).hidden);
    return Object.fromEntries(applies.map((field) => [field.name,
      this.nodes[field.name]?.value() ?? read(this.controls.get(field.name), field)]));
  }
}

/** A dialog for a record: {title, help, fields, label}. `submit(values)` sends it. */
export function ask({ title, help, fields, label }, submit, options_ = {}) {
  const form = new Fields(fields, options_);
  return dialog(title, [help && h('p', { class: 's-quiet' }, help), form.element], label,
    () => submit(form.value(), form));
}
