// Dialogs and forms of actions, drawn from the fields that GET /api/actions lists (`schema` in
// jobs/actions/registry.py).

import { ago, api, button, changed, errorLine, h, quiet, redraw, say, short, t, toast } from './dom.js';
import { poke } from './live.js';

/** A modal form. `submit()` may return a promise; its error is shown and keeps the dialog open. Without
 *  `submit` the dialog only informs. */
export function dialog(title, body, label, submit) {
  const wrong = errorLine();
  const go = h('button.s-button.s-primary', { type: 'submit' }, label);
  const node = h('dialog.s-dialog', { label: title, onclose: () => node.remove() },
    h('form', { method: 'dialog', onsubmit: async (event) => {
      event.preventDefault();
      go.disabled = true;
      say(wrong, '');
      try {
        await submit?.();
        node.close();
        poke();
      } catch (error) { if (node.isConnected) say(wrong, error.message); else toast(error.message, 'error'); }
      go.disabled = false;
    } }, h('h2', title), body, wrong, h('div.s-actions.s-dialog-end',
      button(t`Close`, () => node.close()), submit && go)));
  // Beside the page's element: gradio's container has resets that would reach it.
  (document.querySelector('studio-adapters') ?? document.body).append(node);
  node.showModal();
  return node;
}

export const labelled = (title, control, note = '') => h('label.s-labelled',
  h('span', title), control, note && h('span.s-quiet', note));

export const box = (props) => h('input.s-box', { type: 'checkbox', ...props });

export const options = (choices, chosen) => choices.map((one) => {
  const [value, label] = Array.isArray(one) ? one : [one, one];
  return h('option', { value, selected: [].concat(chosen).includes(value) }, label);
});

export const select = (choices, value, changed, props = {}) => h('select', { ...props,
  onchange: (event) => changed?.(event.target.value) }, options(choices, value));

const KNOWN = { model: 'models', method: 'methods', column: 'columns' };

function choicesOf({ choices, of, default: usual }, known, value) {
  if (choices.length || !known?.[KNOWN[of]]) return choices;
  const named = known[KNOWN[of]].map((one) => (typeof one === 'string' ? [one, one]
    : [one.path ?? one.name, one.label ?? one.title]));
  if (of === 'method') return named;
  const found = usual ? named : [['', t`none`], ...named];
  return found.some(([name]) => [].concat(value).includes(name)) ? found : [...found, [value, short(value)]];
}

function ticks(field, choices, value) {
  const boxes = choices.map(([name, label]) => [box({ value: name,
    checked: !value || list(value).includes(name) }), label]);
  return { element: h('div.s-labelled', { role: 'group', label: field.title },
    h('span', field.title), h('div.s-ticks', boxes.map(([box, label]) =>
      h('label.s-check', box, label)))),
  value() {
    const chosen = boxes.map(([box]) => box).filter((box) => box.checked);
    if (!chosen.length) throw new Error(t`${field.title}: choose at least one.`);
    return chosen.map((box) => box.value).join();
  } };
}

/** The control of a field: a switch, a list to choose one or several from, or a text of one or more lines, to which
 *  `typed` is added. */
export function control({ type, lines, max_length: maxlength }, choices, value, props, typed = {}) {
  if (type === 'switch') return box({ checked: Boolean(value), ...props });
  if (type === 'list' && choices.length) return select(choices, [].concat(value).map(String), null,
    { multiple: true, size: Math.min(5, Math.max(2, choices.length)), ...props });
  if (choices.length) return select(choices, value, null, props);
  const node = h(lines ? 'textarea' : 'input', { ...(lines ? { rows: lines } : { type: 'text' }), maxlength,
    autocomplete: 'off', spellcheck: 'false', ...props, ...typed });
  node.value = Array.isArray(value) ? value.join(lines ? '\n' : ', ') : String(value);
  return node;
}

const bounds = ({ type, ge: min, le: max }) => (['integer', 'number'].includes(type)
  && { type: 'number', min, max, step: type === 'integer' ? 1 : 'any' });

function read(node, { type, title, lines, default: usual }) {
  if (node.type === 'checkbox') return node.checked;
  if (node.multiple) return [...node.selectedOptions].map((one) => one.value);
  if (type === 'list') return list(node.value, lines ? '\n' : ',');
  if (node.type !== 'number') return node.value.trim();
  if (node.value === '' && usual !== undefined) return usual;
  if (!Number.isFinite(node.valueAsNumber)) throw new Error(t`${title} must be a number.`);
  return node.valueAsNumber;
}

export const list = (words, between = ',') => words.split(between).map((one) => one.trim()).filter(Boolean);

/** An ordered list of `known` adapters (or datasets) with weights in `bounds`, as a field that begins with `chosen`. */
export function weighted(known, chosen, title = t`Stack, with weights`, noun = t`Adapter`,
  bounds = { min: -10, max: 10 }) {
  const part = ({ name, path }) => ({ name, path, weight: 1 });
  const stack = chosen.map(part);
  const rows = h('div.s-stack-rows');
  const add = button(`+ ${noun}`, () => {
    const next = known.find((one) => !stack.some(({ path }) => path === one.path));
    if (next) stack.push(part(next));
    show();
  }, 's-tool');
  const row = (one, place) => {
    const names = known.map(({ path, name }) => [path, name]);
    if (!names.some(([path]) => path === one.path)) names.push([one.path, one.name]);
    return h('div.s-stack-row',
      select(names, one.path, (path) => { one.path = path; }, { label: `${noun} ${place + 1}` }),
      h('input', { type: 'number', ...bounds, step: 'any', value: String(one.weight), label:
        t`Weight ${place + 1}`, oninput: (event) => { one.weight = event.target.valueAsNumber; } }),
      button('×', () => { stack.splice(place, 1); show(); }, 's-tool',
        { label: t`Remove: ${noun} ${place + 1}` }));
  };
  function show() {
    redraw(rows, ...stack.map(row));
    add.hidden = stack.length >= known.length;
  }
  show();
  return { element: h('div.s-stack-edit', h('h3', title), rows, add),
    value: () => stack.map(({ path, weight }) => {
      if (!Number.isFinite(weight)) throw new Error(t`Every weight must be a number.`);
      return { name: path, weight };
    }) };
}

/** Controls of fields.
 *  `values` override defaults; `nodes` are own controls by name, as {element, value()}; `known` has the models,
 *  methods, columns and adapters to choose from. */
class Fields {
  constructor(fields, { values = {}, nodes = {}, known = null, kind = 's-dialog-parts' } = {}) {
    Object.assign(this, { fields, nodes: { ...nodes }, controls: new Map(), rows: new Map() });
    for (const field of fields) {
      const value = values[field.name] ?? field.default ?? '', choices = choicesOf(field, known, value);
      if (field.type === 'several' && choices.length) this.nodes[field.name] = ticks(field, choices, value);
      if (!this.nodes[field.name]) this.controls.set(field.name, control(field, choices, value,
        { name: field.name }, { required: field.required, ...bounds(field) }));
      this.rows.set(field.name, this.nodes[field.name]?.element ?? this.row(field));
    }
    const part = (advanced) => fields.filter((field) => Boolean(field.advanced) === advanced)
      .map(({ name }) => this.rows.get(name));
    this.element = h('div', { class: kind, oninput: () => this.show() }, part(false), part(true).length > 0
      && h('details.s-same', h('summary', t`Advanced`),
        h('div.s-dialog-parts', part(true))));
    this.show();
  }

  row({ name, title, unit, help }) {
    const node = this.controls.get(name);
    if (node.type === 'checkbox') return h('label.s-check', { title: help }, node, title);
    return labelled(unit ? `${title} (${unit})` : title, node, help);
  }

  show() {
    for (const { name, when } of this.fields) {
      this.rows.get(name).hidden = Object.entries(when).some(([other, values]) =>
        this.controls.has(other) && !values.includes(this.controls.get(other).value));
    }
  }

  value() {
    const applies = this.fields.filter(({ name }) => !this.rows.get(name).hidden);
    return Object.fromEntries(applies.map((field) => [field.name,
      this.nodes[field.name]?.value() ?? read(this.controls.get(field.name), field)]));
  }
}

let actions = null;

/** The form of an action, as {title, help, element, submit()}.
 *  `fixed` are values that are sent and not shown, `only` the names of the fields shown, `choices` replace those
 *  of a field and `allow` keeps some of them, `stack` begins a stack of `known.adapters`, which may be empty if
 *  `bare`; the rest is as for Fields. `submit(more)` sends further values, changed by `sent`. */
export async function actionForm(name, { fixed = {}, only = null, choices = {}, allow = {}, stack = [],
  bare = false, sent = (values) => values, ...settings } = {}) {
  actions ??= await api('/api/actions');
  const { title, help, fields } = actions.find((one) => one.name === name);
  const drawn = fields.filter((one) => !(one.name in fixed) && (only?.includes(one.name) ?? true))
    .map((one) => ({ ...one, choices: (choices[one.name] ?? one.choices)
      .filter(([value]) => allow[one.name]?.includes(value) ?? true) }));
  const adapters = settings.known?.adapters?.filter((one) => !one.is_model) ?? [];
  const nodes = drawn.some((field) => field.type === 'stack') ? { stack: weighted(adapters,
    stack.length || bare ? stack : adapters.slice(0, 1)) } : {};
  const form = new Fields(drawn, { nodes, ...settings });
  return { title, help, element: form.element,
    submit: (more = {}) => api(`/api/do/${name}`, sent({ ...fixed, ...form.value(), ...more })) };
}

/** A dialog that asks for an action; `label` is on its button. `done` (text, or a function of the answer) is shown on
 *  success. */
export async function askAction(name, { title, label, note, done, ...settings } = {}) {
  const form = await actionForm(name, settings);
  return dialog(title ?? form.title, [quiet(note ?? form.help), form.element], label ?? form.title, async () => {
    const answer = await form.submit();
    const said = typeof done === 'function' ? done(answer) : done;
    if (said) toast(said);
  });
}

export const searchField = (label, oninput, props = {}) => h('input', { type: 'search', placeholder: label,
  label, oninput, ...props });

/** A test whether texts together contain every word of a search. */
export function matcher(search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return (...texts) => words.every((word) => texts.join(' ').toLowerCase().includes(word));
}

/** Fill the list of what was deleted. */
export function showDeleted(bin, gone, restore) {
  bin.hidden = !gone.length;
  if (!changed(bin, JSON.stringify(gone))) return;
  redraw(bin, h('summary', t`Deleted (${gone.length}), kept for 30 days`), h('ol', gone.map((one) => h('li',
    h('span', one.name), h('span.s-quiet', ago(one.deleted)), button(t`Restore`, () => restore(one.token))))));
}
