// Fields of the Train form: a control each, whether it differs from its default, the way back, and the
// picker of target modules.

import { api, button, h, quiet, short, t, table, text } from '../core/dom.js';
import { box, control, dialog, list, select } from '../core/form.js';

const OTHER = '\u0000';
const GPU = /^(cuda|xpu):\d+$/;
const auto = (field) => field.words.auto ?? (field.default === 'auto' ? 'auto' : undefined);

/** The DOM id of a field: `field-method-r` for `method.r`. */
export const idOf = (path) => `field-${path.replaceAll('.', '-')}`;

/** A value as the form writes it: words for codes, nothing where the studio chooses. */
export function written(field, value = field.default) {
  if (value === auto(field)) return '';
  const word = Object.entries(field.words).find(([, code]) => code === value);
  return word ? word[0] : Array.isArray(value) ? value.join(', ') : String(value ?? '');
}

/** What stays of the devices picked, the newest last: GPUs together, all else alone. */
export function pickedDevices(chosen) {
  if (!chosen.length) return ['auto'];
  const last = chosen[chosen.length - 1];
  return GPU.test(last) ? chosen.filter((name) => GPU.test(name)) : [last];
}

export class Setting {
  constructor(field, choices = field.choices) {
    this.field = field;
    const id = idOf(field.name), named = { id: `${id}-input`,
      'aria-describedby': field.help && `${id}-help` };
    this.back = button('↺', () => { this.fill(); this.element.dispatchEvent(new Event('input', { bubbles: true })); },
      's-tool s-back', { hidden: true });
    this.control = this.build(field, choices, named);
    const title = h('label', { for: named.id }, field.title, field.unit && h('small', ` ${field.unit}`));
    const isSwitch = field.type === 'switch';
    this.element = h('div', { class: 's-setting', id },
      h('div.s-setting-head', isSwitch && this.control, title, this.back),
      !isSwitch && this.control, field.help && h('p.s-help', { id: `${id}-help` }, field.help));
    this.fill();
    this.usual = this.value();
    const usual = written(field) || t`auto`;
    this.back.title = t`Back to ${isSwitch ? (field.default ? t`on` : t`off`) : this.labels.get(usual) ?? usual}`;
    this.back.ariaLabel = `${field.title}: ${this.back.title}`;
  }

  build(field, choices, named) {
    this.labels = new Map(choices);
    if (field.type === 'several' && choices.filter(([name]) => GPU.test(name)).length > 1) return this.ticks(choices);
    if (/\.(path|init_adapter)$/.test(field.name) && choices.length) return this.picker(choices, named);
    const closed = !['open_choice', 'text'].includes(field.type);
    const number = ['number', 'integer'].includes(field.type) || field.words.auto !== undefined;
    this.input = control(field, closed ? choices : [], '', named, { inputmode: number && 'decimal',
      placeholder: auto(field) !== undefined && t`auto` });
    if (closed || !choices.length) return this.input;
    const node = h('datalist', { id: `${named.id}-list` }, choices.map(([value]) => h('option', { value })));
    this.input.setAttribute('list', node.id);
    return h('div.s-picker', this.input, node, field.name.endsWith('target_modules') && button(
      t`Choose …`, () => pickTargets(this), 's-tool',
      { title: t`Choose among the model's own modules, layer by layer` }));
  }

  /** A list, with a path that is not in it as its last choice. */
  picker(choices, named) {
    const hub = !this.field.name.endsWith('init_adapter');
    const other = h('input', { type: 'text', hidden: true, spellcheck: 'false', autocomplete: 'off',
      label: hub ? t`${this.field.title}: path or hub id` : t`${this.field.title}: path`,
      placeholder: hub ? t`/path, or owner/name on the hub` : t`/path` });
    this.input = select([...choices, [OTHER, hub ? t`A path or a hub id …` : t`A path …`]], '', (value) => {
      other.hidden = value !== OTHER;
      if (!other.hidden) other.focus();
    }, named);
    this.other = other;
    return h('div.s-picker', this.input, other);
  }

  ticks(choices) {
    let picked = ['auto'];
    const boxes = choices.map(([name, label]) => [name, box({ value: name,
      onchange: ({ target }) => this.input.fill(pickedDevices([...picked.filter((one) => one !== name),
        ...target.checked ? [name] : []])) }), label]);
    this.input = { read: () => picked.join(), fill: (names) => {
      picked = names;
      for (const [name, box] of boxes) box.checked = names.includes(name);
    } };
    return h('div.s-ticks', { role: 'group', label: this.field.title },
      boxes.map(([, box, label]) => h('label.s-check', box, label)));
  }

  value() {
    if (this.input.read) return this.input.read();
    if (this.input.type === 'checkbox') return this.input.checked;
    return this.input.value === OTHER ? this.other.value : this.input.value;
  }

  /** Show a value; without one, the default. */
  fill(value = this.field.default) {
    const { input } = this;
    if (input.fill) return input.fill(String(value).split(','));
    if (input.type === 'checkbox') { input.checked = Boolean(value); return undefined; }
    if (input.localName !== 'select') { input.value = written(this.field, value); return undefined; }
    const name = String(value);
    if (![...input.options].some((one) => one.value === name)) {
      this.offer(name, name.endsWith('/adapter') ? name : short(name)); // of a run that has not ended
    }
    if (this.other) this.other.hidden = true;
    input.value = name;
    return undefined;
  }

  /** Add a choice before the last. */
  offer(value, label) {
    this.input.insertBefore(h('option', { value }, label), this.input.options[this.input.options.length - 1]);
  }

  get isTouched() { return this.value() !== this.usual; }

  /** Show whether it differs from its default, and what an automatic value becomes. */
  mark(differs, becomes) {
    this.element.toggleAttribute('data-changed', differs);
    this.back.hidden = !differs;
    if (becomes === undefined || auto(this.field) === undefined) return;
    if (this.input.localName === 'input') this.input.placeholder = becomes ? t`auto: ${becomes}` : t`auto`;
    const option = this.input.localName === 'select' && [...this.input.options].find((one) => one.value === 'auto');
    const label = this.labels.get('auto') ?? t`auto`;
    if (option) option.textContent = becomes ? `${label}: ${becomes}` : label;
  }

  /** Say that the page's error is about this field. */
  wrong(is) {
    this.element.classList.toggle('s-wrong-field', is);
    if (this.input.setAttribute) this.input.setAttribute('aria-invalid', is);
  }
}

// -- target modules --

let modelPath = () => 'starter';
export const modelsAt = (read) => { modelPath = read; };

async function pickTargets(setting) {
  const path = modelPath();
  const modules = await api('/api/do/modules', { 'model.path': path, local: true });
  const names = [...new Set(modules.map((one) => one.name))];
  const layers = [...new Set(modules.map((one) => one.layer))];
  const at = new Map(modules.map((one) => [`${one.layer} ${one.name}`, one]));
  const written_ = setting.input.value || setting.usual;
  const chosen = new Set(modules.filter((one) => targets(written_, one)).map((one) => one.key));
  const words = quiet({ role: 'status' });
  const boxes = new Map();
  const show = () => {
    for (const [key, box] of boxes) box.checked = chosen.has(key);
    text(words, t`${chosen.size} of ${modules.length} linear layers`);
  };
  const flip = (some) => {
    const keys = some.filter(Boolean).map((one) => one.key);
    const all = keys.every((key) => chosen.has(key));
    for (const key of keys) chosen[all ? 'delete' : 'add'](key);
    show();
  };
  const cell = (one) => {
    if (!one) return h('td');
    const node = box({ label: one.key,
      title: `${one.key} (${one.shape.join(' × ')})`,
      onchange: () => { chosen[node.checked ? 'add' : 'delete'](one.key); show(); } });
    boxes.set(one.key, node);
    return h('td', node);
  };
  const of = (layer, name) => at.get(`${layer} ${name}`);
  const boxesOf = table([t`Layer`, ...layers.map((layer) => button(String(layer), () =>
    flip(names.map((name) => of(layer, name))), 's-tool', { title: t`All modules of this layer` }))],
  names.map((name) => [h('th', { scope: 'row' }, button(name, () => flip(layers.map((layer) => of(layer, name))),
    's-tool', { title: t`In every layer` })), ...layers.map((layer) => cell(of(layer, name)))]), { class: '' });
  const node = dialog(t`Target modules`, [h('div.s-actions',
    button(t`All`, () => flip([...at.values()].filter((one) => !chosen.has(one.key))), 's-tool'),
    button(t`Attention`, () => flip(modules.filter((one) => /att/.test(one.name))), 's-tool'),
    button('MLP', () => flip(modules.filter((one) => !/att/.test(one.name))), 's-tool'), words),
  h('div.s-targets', { testid: 'targets' }, boxesOf)], t`Use these`, async () => {
    if (!chosen.size) throw new Error(t`Choose at least one linear layer.`);
    const { targets: found } = await api('/api/do/modules', { 'model.path': path, chosen: [...chosen] });
    setting.input.value = found.join(', ');
    setting.element.dispatchEvent(new Event('input', { bubbles: true }));
  });
  node.classList.add('s-wide-dialog');
  show();
}

/** Return true if the field's text names this module: a group, a whole path or its end. */
function targets(value, { key, name }) {
  return list(value).some((word) => word === 'all-linear' || key === word || key.endsWith(`.${word}`)
    || (word === 'attention' && /att/.test(name)) || (word === 'mlp' && !/att/.test(name)));
}
