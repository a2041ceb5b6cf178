// The picker of target modules: a row per module, a column per layer, ticked as the field says. The
// chosen ones go back into the field in the shortest words that mean the same.

import { api, button, h, text, toast } from './dom.js';
import { dialog } from './adapters_dialogs.js';

/** Put a "Choose …" button on every field of target modules that is on the page. */
export function offerPicker(modelPath) {
  for (const field of document.querySelectorAll('[id^=field-method-][id$=-target_modules]')) {
    if (field.querySelector('.s-pick')) continue;
    field.append(button('Choose …', () => pick(field, modelPath()), 's-tool s-pick',
      { title: "Choose among the model's own modules, layer by layer" }));
  }
}

async function pick(field, path) {
  let modules;
  try {
    ({ modules } = await api(`/api/targets?path=${encodeURIComponent(path)}`));
  } catch (error) { return toast(error.message, 'error'); }
  const names = [...new Set(modules.map((one) => one.name))];
  const layers = [...new Set(modules.map((one) => one.layer))];
  const at = new Map(modules.map((one) => [`${one.layer} ${one.name}`, one]));
  const input = field.querySelector('input');
  const chosen = new Set(modules.filter((one) => says(input.value, one)).map((one) => one.key));
  const count = h('p', { class: 's-quiet', role: 'status' });
  const boxes = new Map();
  const show = () => {
    for (const [key, box] of boxes) box.checked = chosen.has(key);
    text(count, `${chosen.size} of ${modules.length} linear layers`);
  };
  const flip = (some) => {
    const keys = some.filter(Boolean).map((one) => one.key);
    const all = keys.every((key) => chosen.has(key));
    for (const key of keys) chosen[all ? 'delete' : 'add'](key);
    show();
  };
  const cell = (one) => {
    if (!one) return h('td', {});
    const box = h('input', { type: 'checkbox', class: 's-box', 'aria-label': one.key,
      title: `${one.key} (${one.shape.join(' × ')})`,
      onchange: () => { chosen[box.checked ? 'add' : 'delete'](one.key); show(); } });
    boxes.set(one.key, box);
    return h('td', {}, box);
  };
  const table = h('table', {}, h('thead', {}, h('tr', {}, h('th', {}, 'Layer'), layers.map((layer) =>
    h('th', { scope: 'col' }, button(String(layer), () => flip(names.map((name) => at.get(`${layer} ${name}`))),
      's-tool', { title: 'All modules of this layer' }))))),
  h('tbody', {}, names.map((name) => h('tr', {}, h('th', { scope: 'row' }, button(name,
    () => flip(layers.map((layer) => at.get(`${layer} ${name}`))), 's-tool', { title: 'In every layer' })),
  layers.map((layer) => cell(at.get(`${layer} ${name}`)))))));
  const node = dialog('Target modules', [h('div', { class: 's-actions' },
    button('All', () => flip([...at.values()].filter((one) => !chosen.has(one.key))), 's-tool'),
    button('Attention', () => flip(modules.filter((one) => /att/.test(one.name))), 's-tool'),
    button('MLP', () => flip(modules.filter((one) => !/att/.test(one.name))), 's-tool'), count),
  h('div', { class: 's-targets', 'data-testid': 'targets' }, table)], 'Use these', async () => {
    if (!chosen.size) throw new Error('Choose at least one linear layer.');
    const { targets } = await api('/api/targets', { path, keys: [...chosen] });
    // Nothing behind an open dialog can take the focus.
    node.addEventListener('close', () => write(input, targets.join(', ')));
  });
  node.classList.add('s-wide-dialog');
  show();
}

/** Whether the field's words mean this module: a group, a whole path or its end. */
function says(value, { key, name }) {
  const words = value.split(',').map((word) => word.trim()).filter(Boolean);
  return words.some((word) => word === 'all-linear' || key === word || key.endsWith(`.${word}`)
    || (word === 'attention' && /att/.test(name)) || (word === 'mlp' && !/att/.test(name)));
}

/** Type into gradio's own field: it only listens to what a person would do. */
function write(input, value) {
  input.focus();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, value);
  input.dispatchEvent(new Event('input', { bubbles: true }));
  input.blur();
}
