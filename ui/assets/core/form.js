// Dialogs and forms drawn from the fields of a record, as GET /api/actions lists them: {name, title, help,
// type, default, ge, le, step, choices, of, advanced, unit, required}. Types: text, lines, integer, number,
// switch, choice, list, stack. Pages may add `placeholder`, `rows`, `max_length`, `empty` (show a default as
// an empty field) and `more` (attributes).

import { api, button, errorLine, h, say, send, short } from './dom.js';
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

/** The control of one field; `known` has what its hint `of` refers to. `read` gives its value. */
function control(field, value, known) {
  const { name, type, of, step, placeholder, required, more } = field;
  let { choices } = field;
  if (type === 'boolean' || type === 'switch') {
    return h('input', { type: 'checkbox', class: 's-box', name, checked: Boolean(value), ...more });
  }
  if (of === 'model' && known?.models) {
    choices = [...(field.default ? [] : [['', 'none']]), ...known.models.map((one) => [one.path, one.label])];
    if (!choices.some(([path]) => path === value)) choices.push([value, short(value)]);
  }
  if (type === 'list' && choices?.length) {
    const size = Math.min(5, Math.max(2, choices.length));
    return h('select', { multiple: true, size, name, ...more }, options(choices, value));
  }
  if (choices?.length) return select(choices, value, null, { name, ...more });
  const props = { name, placeholder, required, maxlength: field.max_length, autocomplete: 'off', spellcheck: 'false' };
  if (type === 'lines') {
    const area = h('textarea', { rows: field.rows ?? 4, ...props, ...more });
    area.value = value;
    return area;
  }
  const bounds = type === 'integer' || type === 'number'
    ? { type: 'number', min: field.ge, max: field.le, step: step ?? (type === 'integer' ? 1 : 'any') }
      : { type: 'text' };
  return h('input', { ...bounds, value: String(value), ...props, ...more });
}

function read(node, { type, name, title, default: usual }) {
  if (node.type === 'checkbox') return node.checked;
  if (type === 'list') return node.multiple ? [...node.selectedOptions].map((one) => one.value) : list(node.value);
  if (type !== 'integer' && type !== 'number') return node.value.trim();
  if (node.value === '' && usual !== undefined) return usual;
  if (!Number.isFinite(node.valueAsNumber)) throw new Error(`${title ?? name} must be a number.`);
  return node.valueAsNumber;
}

/** The texts of a comma-separated list. */
export const list = (words) => words.split(',').map((one) => one.trim()).filter(Boolean);

/** An ordered stack of adapters with weights, as a field that begins with `adapters`. */
function stackField(known, adapters) {
  const part = ({ name, path }) => ({ name, path, weight: 1 });
  const stack = (adapters.length ? adapters : known.slice(0, 1)).map(part);
  const rows = h('div', { class: 's-stack-rows' });
  const add = button('+ Adapter', () => {
    const next = known.find((one) => !stack.some(({ path }) => path === one.path));
    if (next) stack.push(part(next));
    show();
  }, 's-tool');
  const row = (one, place) => {
    const names = known.map(({ path, name }) => [path, name]);
    if (!names.some(([path]) => path === one.path)) names.push([one.path, one.name]);
    return h('div', { class: 's-stack-row' },
      select(names, one.path, (path) => { one.path = path; }, { 'aria-label': `Adapter ${place + 1}` }),
      h('input', { type: 'number', min: -10, max: 10, step: 0.05, value: String(one.weight), 'aria-label':
        `Weight ${place + 1}`, oninput: (event) => { one.weight = event.target.valueAsNumber; } }),
      button('×', () => { stack.splice(place, 1); show(); }, 's-tool',
        { 'aria-label': `Remove adapter ${place + 1}` }));
  };
  function show() {
    rows.replaceChildren(...stack.map(row));
    add.hidden = stack.length >= known.length;
  }
  show();
  return { element: h('div', { class: 's-stack-edit' }, h('h3', {}, 'Stack, with weights'), rows, add),
    value: () => stack.map(({ path, weight }) => {
      if (!Number.isFinite(weight)) throw new Error('Every adapter needs a weight between −10 and 10.');
      return { name: path, weight };
    }) };
}

/** The fields of a record as controls.
 *  `values` override defaults; `nodes` are own controls by name, as {element, value()}; `shown(values)` returns
 *  the names of the fields that apply, all without it; `known` has the models and adapters to choose from. */
export class Fields {
  constructor(fields, { values = {}, nodes = {}, shown = null, known = null, kind = 's-dialog-parts' } = {}) {
    Object.assign(this, { fields, nodes, shown });
    const start = (field) => values[field.name] ?? (field.empty ? '' : field.default) ?? '';
    this.controls = new Map(fields.filter(({ name }) => !nodes[name]).map((field) =>
      [field.name, control(field, start(field), known)]));
    this.rows = new Map(fields.map((field) => [field.name, nodes[field.name]?.element ?? this.row(field)]));
    const part = (advanced) => fields.filter((field) => Boolean(field.advanced) === advanced)
      .map(({ name }) => this.rows.get(name));
    this.element = h('div', { class: kind, onchange: () => this.show() }, part(false), part(true).length > 0
      && h('details', { class: 's-same' }, h('summary', {}, 'Advanced'),
        h('div', { class: 's-dialog-parts' }, part(true))));
    this.show();
  }

  row(field) {
    const node = this.controls.get(field.name), title = field.title ?? field.name;
    if (node.type === 'checkbox') return h('label', { class: 's-check', title: field.help }, node, title);
    return labelled(field.unit ? `${title} (${field.unit})` : title, node, field.help);
  }

  show() {
    if (!this.shown) return;
    const raw = Object.fromEntries([...this.controls].map(([name, node]) => [name, node.value]));
    const wanted = this.shown(raw);
    for (const [name, row] of this.rows) row.hidden = !wanted(name);
  }

  value() {
    const applies = this.fields.filter(({ name }) => !this.rows.get(name).hidden);
    return Object.fromEntries(applies.map((field) => [field.name,
      this.nodes[field.name]?.value() ?? read(this.controls.get(field.name), field)]));
  }
}

/** A dialog for a record: {title, help, fields, label}. `submit(values)` sends it. */
export function ask({ title, help, fields, label }, submit, settings = {}) {
  const form = new Fields(fields, settings);
  return dialog(title, [help && h('p', { class: 's-quiet' }, help), form.element], label, () => submit(form.value()));
}

let actions = null;

/** A dialog for an action of the server.
 *  `fixed` are values that are sent and not shown, `choices` replace those of a field, `stack` begins a stack
 *  of `known.adapters`; the rest is as for Fields. */
export async function askAction(name, { fixed = {}, choices = {}, stack = [], title: own, ...settings } = {}) {
  actions ??= await send('/api/actions');
  const { title, help, fields } = actions.find((one) => one.name === name);
  const drawn = fields.filter((field) => !(field.name in fixed))
    .map((field) => ({ ...field, choices: choices[field.name] ?? field.choices }));
  const adapters = settings.known?.adapters.filter((one) => !one.is_model) ?? [];
  const nodes = drawn.some((field) => field.type === 'stack') ? { stack: stackField(adapters, stack) } : {};
  return ask({ title: own ?? title, help, fields: drawn, label: title.split(' ')[0] },
    (values) => api(`/api/do/${name}`, { ...fixed, ...values }), { nodes, ...settings });
}
