// The dialogs of the Adapters page: what to merge, mix, import or export. Each only leaves a job; the
// page shows how it goes.

import { api, button, h, short, text } from './dom.js';
import { poke } from './live.js';

/** A modal form; `submit(fields)` returns a promise, whose error is shown and keeps it open. Without
 *  one it only tells something. */
export function dialog(title, body, label, submit) {
  const wrong = h('p', { class: 's-error', role: 'alert', hidden: true });
  const go = h('button', { class: 's-button s-primary', type: 'submit' }, label);
  const node = h('dialog', { class: 's-dialog', 'aria-label': title, onclose: () => node.remove() },
    h('form', { method: 'dialog', onsubmit: async (event) => {
      event.preventDefault();
      go.disabled = true;
      wrong.hidden = true;
      try {
        await submit?.();
        node.close();
        poke();
      } catch (error) {
        text(wrong, error.message);
        wrong.hidden = false;
      }
      go.disabled = false;
    } }, h('h2', {}, title), body, wrong, h('div', { class: 's-actions s-dialog-end' },
      button('Close', () => node.close()), submit && go)));
  // Beside the page's element: gradio's container has resets that would reach it.
  (document.querySelector('studio-adapters') ?? document.body).append(node);
  node.showModal();
  return node;
}

export function labelled(name, input, note = '') {
  return h('label', { class: 's-labelled' }, h('span', {}, name), input,
    note && h('span', { class: 's-quiet' }, note));
}

export function choice(options, value, changed) {
  const node = h('select', { onchange: () => changed?.(node.value) },
    options.map(([key, words]) => h('option', { value: key }, words)));
  if (value !== undefined) node.value = value;
  return node;
}

export function input(value, props = {}) {
  const node = h('input', { type: 'text', ...props });
  node.value = value;
  return node;
}

const numeric = (value, bounds) => input(value, { type: 'number', ...bounds });

export function modelChoice(page, adapters) {
  const base = adapters.find((one) => one.base)?.base;
  const options = page.models.map((one) => [one.path, one.label]);
  if (base && !options.some(([path]) => path === base)) options.push([base, short(base)]);
  return choice(options, base ?? options[0]?.[0]);
}

/** An ordered stack of adapters with weights that can be edited. */
export function stackOf(page, adapters, fits) {
  const known = page.adapters.filter((one) => !one.is_model && fits(one));
  const stack = (adapters.length ? adapters : known.slice(0, 1)).map((one) =>
    ({ name: one.name, path: one.path, weight: 1 }));
  const rows = h('div', { class: 's-stack-rows' });
  const add = button('+ Adapter', () => {
    const next = known.find((one) => !stack.some((part) => part.path === one.path));
    if (next) stack.push({ name: next.name, path: next.path, weight: 1 });
    show();
  }, 's-tool');
  function show() {
    rows.replaceChildren(...stack.map((part, place) => {
      const names = known.map((one) => [one.path, one.name]);
      if (!names.some(([path]) => path === part.path)) names.push([part.path, part.name]);
      const which = choice(names, part.path, (path) => { part.path = path; });
      which.setAttribute('aria-label', `Adapter ${place + 1}`);
      const weight = numeric(part.weight, { min: -10, max: 10, step: 0.05, 'aria-label':
        `Weight ${place + 1}`, oninput: (event) => { part.weight = event.target.valueAsNumber; } });
      return h('div', { class: 's-stack-row' }, which, weight, button('×', () => {
        stack.splice(place, 1);
        show();
      }, 's-tool', { 'aria-label': `Take adapter ${place + 1} out` }));
    }));
    add.hidden = stack.length >= known.length;
  }
  show();
  return { element: h('div', { class: 's-stack-edit' }, h('h3', {}, 'Stack, with weights'), rows, add),
    value: () => stack.map(({ path, weight }) => {
      if (!Number.isFinite(weight)) throw new Error('Every adapter needs a weight between −10 and 10.');
      return { name: path, weight };
    }) };
}

export const ask = (kind, values) => api(`/api/adapters/ask/${kind}`, values);

export function askMerge(page, adapters) {
  const model = modelChoice(page, adapters);
  const stack = stackOf(page, adapters, () => true);
  const name = input('', { placeholder: 'made up from the adapters' });
  const dtype = choice([['auto', 'as the device likes'], ['float32', 'float32'],
    ['bfloat16', 'bfloat16'], ['float16', 'float16']]);
  dialog('Merge into a model', [h('p', { class: 's-quiet' }, 'Folds the adapters into a copy of the base: '
    + 'a model of its own, without any cost per token. A fresh process then reloads the files and '
    + 'compares their logits with the live stack; a merge that differs is not kept.'), stack.element,
  labelled('Base', model), labelled('Precision', dtype), labelled('Name of the model', name)],
  'Merge', () => ask('merge', { name: name.value, stack: stack.value(),
    model: { path: model.value, dtype: dtype.value } }));
}

const WAYS = [['concatenate', 'Exact weighted sum (the ranks add up)'],
  ['svd', 'Weighted sum, cut back to a rank (SVD)'],
  ['ties', 'TIES: keep the largest, agree on signs'], ['dare', 'DARE: drop at random, rescale']];

export function askMix(page, adapters) {
  const model = modelChoice(page, adapters);
  const stack = stackOf(page, adapters, (one) => one.method === 'lora');
  const name = input('', { placeholder: 'for example pirate-butler', required: true });
  const r = numeric(16, { min: 1, max: 1024 }), density = numeric(0.5, { min: 0.01, max: 1, step: 0.01 });
  const seed = numeric(0, { min: 0 });
  const rank = labelled('Rank of the result', r), kept = labelled('Share kept', density);
  const parts = { svd: [rank], ties: [rank, kept], dare: [rank, kept, labelled('Seed', seed)] };
  const more = h('div', { class: 's-fields-row' });
  const how = choice(WAYS, 'concatenate', (way) => more.replaceChildren(...(parts[way] ?? [])));
  dialog('Mix into a new adapter', [h('p', { class: 's-quiet' }, 'Makes one LoRA from several. How far it '
    + 'is from the exact weighted sum is measured and kept in its passport.'), stack.element,
  labelled('Way', how), more, labelled('Base', model), labelled('Name of the adapter', name)],
  'Mix', () => ask('mix', { name: name.value, stack: stack.value(), how: how.value,
    model: { path: model.value }, r: r.valueAsNumber, density: density.valueAsNumber,
    seed: seed.valueAsNumber || 0 }));
}

export function askImport(page) {
  const source = input('', { placeholder: '/path/to/adapter or org/name', required: true });
  const name = input('', { placeholder: "the folder's own name" });
  const model = choice([['', 'Do not check'], ...page.models.map((one) => [one.path, one.label])], '');
  dialog('Import an adapter', [h('p', { class: 's-quiet' }, 'A PEFT or AdapterHub folder, or a hub id; '
    + 'which one it is shows in its files. Only safetensors are opened, never pickled weights.'),
  labelled('Folder or hub id', source), labelled('Name', name),
  labelled('Try it on this base', model, 'Loads the base and says what does not fit.')],
  'Import', () => ask('import_adapter', { source: source.value.trim(), adapter: name.value.trim(),
    model: model.value ? { path: model.value } : null }));
}
