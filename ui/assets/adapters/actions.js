// Dialogs that merge, mix, import, export and push adapters, each of which queues a job; and what such
// a job made: the certificate of a merge, the error of a mix, the check of an export.

import { api, button, copy, h, number, short, text } from '../core/dom.js';
import { choice, dialog, input, labelled, numeric } from '../core/form.js';

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

const isBottleneck = (one) => one.method === 'bottleneck';
const FORMS = [
  { key: 'peft', name: 'PEFT adapter', note: 'A folder for PeftModel.from_pretrained, transformers and most '
    + 'tools.', fits: (one) => !one.is_model },
  { key: 'vllm', name: 'vLLM LoRA folder', note: 'For vllm serve --enable-lora; the card has the whole command.',
    fits: (one) => one.method === 'lora' },
  { key: 'adapterhub', name: 'AdapterHub adapter', note: "For the adapters library's load_adapter.",
    fits: isBottleneck },
  { key: 'merge', name: 'Merged model', note: 'A model of its own in safetensors, folded in and reloaded by a '
    + 'fresh process: loads in plain transformers.', fits: (one) => !one.is_model, many: true },
  { key: 'gguf', name: 'GGUF with an Ollama Modelfile', note: 'One file for Ollama, llama.cpp and LM Studio, '
    + 'chat template included; read back and compared. Llama, Mistral, Qwen and Gemma families.',
  fits: () => true, many: true },
  { key: 'card', name: 'Model card alone', note: 'A README with how it was trained, for a hub or a colleague.',
    fits: () => true },
];
const PRECISIONS = [['f16', 'F16: half the size, all but exact'], ['q8_0', 'Q8_0: a quarter, for most machines'],
  ['bf16', 'BF16'], ['f32', 'F32: exact']];

/** Ask how to export one adapter, or several as one stack. */
export function askExport(page, adapters) {
  const [one] = adapters, several = adapters.length > 1;
  const forms = FORMS.filter((form) => (several ? form.many : true) && adapters.every(form.fits));
  const note = h('p', { class: 's-quiet' });
  const out = input('', { placeholder: "in the studio's own exports folder" });
  const name = input('', { placeholder: 'made up from the adapters' });
  const precision = choice(PRECISIONS, 'f16');
  const stack = one.is_model ? null : stackOf(page, adapters, () => true);
  const model = modelChoice(page, adapters);
  const folder = labelled('New folder', out), called = labelled('Name', name), base = labelled('Base', model);
  const parts = {
    gguf: [stack?.element, stack && base, labelled('Precision', precision), called, folder],
    merge: [stack?.element, base, called],
  };
  const more = h('div', { class: 's-dialog-parts' });
  const which = choice(forms.map(({ key, name: words }) => [key, words]), forms[0].key, show);
  which.setAttribute('data-testid', 'export-form');
  function show() {
    text(note, forms.find((form) => form.key === which.value).note);
    more.replaceChildren(...(parts[which.value] ?? [folder]).filter(Boolean));
  }
  show();
  dialog(several ? `Export ${adapters.length} adapters as one` : `Export “${one.name}”`,
    [labelled('As', which), note, more], 'Export', () => ({
      gguf: () => ask('gguf', { name: name.value.trim(), stack: stack ? stack.value() : [],
        model: { path: stack ? model.value : one.path }, precision: precision.value, out: out.value.trim() }),
      merge: () => ask('merge', { name: name.value.trim(), stack: stack.value(), model: { path: model.value } }),
    }[which.value] ?? (() => ask('export_adapter', { adapter: one.path, form: which.value,
      out: out.value.trim() })))());
}

/** Ask where to upload a folder that an export wrote. */
export function askPush(folder) {
  const repo = input('', { placeholder: 'owner/name', required: true });
  const open = choice([['private', 'Only I can see it'], ['public', 'Everybody can see it']], 'private');
  dialog('Push to the hub', [h('p', { class: 's-quiet' }, 'Uploads the folder with the token that the hub’s own '
    + 'library keeps (hf auth login, or HF_TOKEN), and looks that every file arrived whole.'),
  h('p', { class: 's-path' }, folder), labelled('Repository', repo), labelled('Who can see it', open)],
  'Push', () => ask('push', { folder, repo: repo.value.trim(), private: open.value === 'private' }));
}

export const KINDS = { merge: 'Merge', mix: 'Mix', import_adapter: 'Import', export_adapter: 'Export',
  gguf: 'GGUF', push: 'Push', picture: 'Picture', bakeoff: 'Bake-off', promote: 'Promote' };
const WRITES = ['merge', 'mix', 'gguf', 'export_adapter', 'push'];

/** Fill `node` with the outcome of an ended job. */
export async function outcome(job, node) {
  if (job.error) return node.replaceChildren(h('p', { class: 's-error' }, job.error.text));
  if (job.state !== 'succeeded') return node.replaceChildren();
  if (!WRITES.includes(job.kind)) return node.replaceChildren();
  const found = await api(`/api/adapters/jobs/${job.id}`).catch(() => null);
  if (!found) return node.replaceChildren();
  if (job.kind === 'push') return node.replaceChildren(h('p', {}, 'Arrived whole: ', h('b', {}, found.address ?? '')));
  if (job.kind === 'gguf' || job.kind === 'export_adapter') return node.replaceChildren(...exported(found));
  if (job.kind === 'mix') return node.replaceChildren(found.mix ? mixed(found) : '');
  return node.replaceChildren(...certificate(found));
}

/** What an export wrote and how it answered when it was read back. */
function exported({ check, adapter }) {
  const compared = check?.max_error != null;
  const words = [compared && `Read back: largest logit error ${number(check.max_error, 2)} (allowed ${
    number(check.tolerance, 2)}), ${check.tokens_changed} of ${check.tokens_compared} tokens changed.`,
  check?.note, ...(check?.notes ?? [])].filter(Boolean).join(' ');
  const path = button('Copy path', () => copy(adapter, path), 's-tool');
  return [words ? h('p', { 'data-testid': 'export-check' }, words) : '',
    h('p', {}, h('span', { class: 's-path' }, adapter), ' ', path,
      button('Push to the hub …', () => askPush(adapter), 's-tool'))];
}

function mixed({ mix, adapter }) {
  const exact = mix.how === 'concatenate';
  return h('p', {}, `"${short(adapter)}" is `, exact ? 'exactly the weighted sum'
    : `${mix.how.toUpperCase()}`, ', ', h('b', {}, `${number(100 * mix.error, 2)}\u202f%`),
  exact ? ' away from it by rounding.' : ' away from the weighted sum (truncation included).');
}

/** The certificate: the written files were loaded by a fresh process and answered like the stack. */
function certificate({ certificate: found, adapter }) {
  const compare = `/compare?lane=${encodeURIComponent(adapter)}`;
  if (!found || found.max_error === undefined) {
    return [h('p', { class: 's-quiet' }, `Merged into ${adapter}; its certificate is gone.`)];
  }
  const error = `${number(found.max_error, 2)} (allowed ${number(found.tolerance, 2)})`;
  const rows = [
    ['Largest logit error', error],
    ['Mean logit error', number(found.mean_error, 2)],
    ['Tokens changed', `${found.tokens_changed} of ${found.tokens_compared}`],
    ['Precision', `${found.base_precision} base, ${found.merged_precision} result`],
    ['Merged', found.merged.join(', ')],
    found.left.length && ['Stays an adapter', found.left.map(short).join(', ')],
    ['Files', found.files?.slice(0, 16)],
  ].filter(Boolean);
  return [h('details', { class: 's-certificate', 'data-testid': 'certificate' },
    h('summary', {}, `Certificate: reloaded, it answers like the stack; largest logit error ${error}`),
    h('dl', { class: 's-pairs' }, rows.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))))),
  h('p', {}, h('span', { class: 's-path' }, adapter), ' ', h('a', { href: compare }, 'Chat with it'), ' ',
    button('Push to the hub …', () => askPush(adapter), 's-tool'))];
}
