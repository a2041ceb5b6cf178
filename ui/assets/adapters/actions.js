// Dialogs that merge, mix, import, export and push adapters, each of which queues a job; and what such
// a job made: the certificate of a merge, the error of a mix, the check of an export.

import { api, button, copy, h, number, pairs, quiet, short, text } from '../core/dom.js';
import { ask, control, dialog, Fields, options, select } from '../core/form.js';

const queue = (kind, values) => api(`/api/adapters/ask/${kind}`, values);

const NAME = { name: 'name', title: 'Name', placeholder: 'generated from the adapters' };
const OUT = { name: 'out', title: 'New folder', placeholder: "in the home's exports folder" };

/** The base as a field, with the adapters' own base first chosen. */
function modelNode(page, adapters) {
  const base = adapters.find((one) => one.base)?.base;
  const choices = page.models.map((one) => [one.path, one.label]);
  if (base && !choices.some(([path]) => path === base)) choices.push([base, short(base)]);
  const node = select(choices, base ?? choices[0]?.[0]);
  const label = h('label', { class: 's-labelled' }, h('span', {}, 'Base'), node);
  return { element: label, value: () => ({ path: node.value }) };
}

/** An ordered stack of adapters whose weights can be edited, as a field. */
function stackNode(page, adapters, fits = () => true) {
  const known = page.adapters.filter((one) => !one.is_model && fits(one));
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
    const weight = control({ type: 'number', ge: -10, le: 10, step: 0.05, more: { 'aria-label': `Weight ${place + 1}`,
      oninput: (event) => { one.weight = event.target.valueAsNumber; } } }, one.weight);
    return h('div', { class: 's-stack-row' }, select(names, one.path, (path) => { one.path = path; },
      { 'aria-label': `Adapter ${place + 1}` }), weight,
    button('×', () => { stack.splice(place, 1); show(); }, 's-tool', { 'aria-label': `Remove adapter ${place + 1}` }));
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

export function askMerge(page, adapters) {
  ask({ title: 'Merge into a model', label: 'Merge', help: 'Folds the adapters into a copy of the base, a model '
    + 'without any cost per token. A fresh process reloads the files and compares their logits with the '
    + 'unmerged stack; a merge that differs is discarded.', fields: [
    { name: 'stack' }, { name: 'model' },
    { name: 'dtype', title: 'Precision', choices: [['auto', 'the default of the device'], 'float32', 'bfloat16', 'float16'] },
    { ...NAME, title: 'Name of the model' },
  ] }, ({ model, dtype, ...values }) => queue('merge', { ...values, model: { ...model, dtype } }),
  { nodes: { stack: stackNode(page, adapters), model: modelNode(page, adapters) } });
}

const MIX = [
  { name: 'stack' },
  { name: 'how', title: 'Method', default: 'concatenate', choices: [
    ['concatenate', 'Exact weighted sum (the ranks add up)'], ['svd', 'Weighted sum, truncated to a rank (SVD)'],
    ['ties', 'TIES: keep the largest, agree on signs'], ['dare', 'DARE: drop at random, rescale']] },
  { name: 'r', title: 'Rank of the result', type: 'integer', default: 16, ge: 1, le: 1024 },
  { name: 'density', title: 'Share kept', type: 'number', default: 0.5, ge: 0.01, le: 1, step: 0.01 },
  { name: 'seed', title: 'Seed', type: 'integer', default: 0, ge: 0 },
  { name: 'model' },
  { name: 'name', title: 'Name of the adapter', placeholder: 'for example pirate-butler', required: true },
];
const MIX_ONLY = { concatenate: [], svd: ['r'], ties: ['r', 'density'], dare: ['r', 'density', 'seed'] };

export function askMix(page, adapters) {
  ask({ title: 'Mix into a new adapter', label: 'Mix', help: 'Makes one LoRA from several. Its distance from the '
    + 'exact weighted sum is measured and stored in its passport.', fields: MIX }, (values) => queue('mix', values), {
    nodes: { stack: stackNode(page, adapters, (one) => one.method === 'lora'), model: modelNode(page, adapters) },
    shown: ({ how }) => ['stack', 'how', 'model', 'name', ...MIX_ONLY[how]],
  });
}

export function askImport(page) {
  ask({ title: 'Import an adapter', label: 'Import', help: 'A PEFT or AdapterHub folder, or a hub id; the format is '
    + 'detected. Only safetensors files are read, never pickled weights.', fields: [
    { name: 'source', title: 'Folder or hub id', placeholder: '/path/to/adapter or org/name', required: true },
    { name: 'adapter', title: 'Name', placeholder: "the folder's own name" },
    { name: 'model', title: 'Test on this base', help: 'Loads the base and reports what does not fit.',
      choices: [['', 'Do not test'], ...page.models.map((one) => [one.path, one.label])] },
  ] }, ({ model, ...values }) => queue('import_adapter', { ...values, model: model ? { path: model } : null }));
}

const EXPORTS = [
  { key: 'peft', name: 'PEFT adapter', note: 'A folder for PeftModel.from_pretrained, transformers and most tools.',
    fits: (one) => !one.is_model },
  { key: 'vllm', name: 'vLLM LoRA folder', note: 'For vllm serve --enable-lora; the card has the full command.',
    fits: (one) => one.method === 'lora' },
  { key: 'adapterhub', name: 'AdapterHub adapter', note: "For the adapters library's load_adapter.",
    fits: (one) => one.method === 'bottleneck' },
  { key: 'merge', name: 'Merged model', note: 'A model in safetensors, folded in and reloaded by a fresh process: '
    + 'loads in plain transformers.', fits: (one) => !one.is_model, many: true },
  { key: 'gguf', name: 'GGUF with an Ollama Modelfile', note: 'One file for Ollama, llama.cpp and LM Studio, '
    + 'chat template included; read back and compared. Llama, Mistral, Qwen and Gemma families.',
  fits: () => true, many: true },
  { key: 'card', name: 'Model card alone', note: 'A README with how it was trained, for a hub or a colleague.',
    fits: () => true },
];
const PRECISION = { name: 'precision', title: 'Precision', default: 'f16', choices: [
  ['f16', 'F16: half the size, nearly exact'], ['q8_0', 'Q8_0: a quarter of the size, for most machines'],
  ['bf16', 'BF16'], ['f32', 'F32: exact']] };

/** Ask how to export one adapter, or several as one stack. */
export function askExport(page, adapters) {
  const [one] = adapters, several = adapters.length > 1;
  const formats = EXPORTS.filter((format) => (!several || format.many) && adapters.every(format.fits));
  const stacked = one.is_model ? [] : [{ name: 'stack' }, { name: 'model' }];
  const parts = { gguf: [...stacked, PRECISION, NAME, OUT], merge: [...stacked, NAME] };
  const nodes = one.is_model ? {} : { stack: stackNode(page, adapters), model: modelNode(page, adapters) };
  const note = quiet(), more = h('div', {});
  let form;
  const which = h('select', { 'data-testid': 'export-form', onchange: show },
    options(formats.map(({ key, name }) => [key, name])));
  function show() {
    text(note, formats.find(({ key }) => key === which.value).note);
    form = new Fields(parts[which.value] ?? [OUT], { nodes });
    more.replaceChildren(form.element);
  }
  show();
  dialog(several ? `Export ${adapters.length} adapters as one` : `Export “${one.name}”`,
    [h('label', { class: 's-labelled' }, h('span', {}, 'As'), which), note, more], 'Export', () => {
      const values = form.value();
      if (which.value === 'merge') return queue('merge', values);
      if (which.value === 'gguf') return queue('gguf', { stack: [], model: { path: one.path }, ...values });
      return queue('export_adapter', { adapter: one.path, form: which.value, ...values });
    });
}

/** Ask where to upload a folder that an export wrote. */
function askPush(folder) {
  ask({ title: 'Push to the hub', label: 'Push', help: `Uploads ${folder} with the token of the hub's own library `
    + '(hf auth login, or HF_TOKEN) and verifies every uploaded file.', fields: [
    { name: 'repo', title: 'Repository', placeholder: 'owner/name', required: true },
    { name: 'private', title: 'Visibility', choices: [['private', 'Only I can see it'], ['public', 'Everybody can see it']] },
  ] }, (values) => queue('push', { folder, repo: values.repo, private: values.private === 'private' }));
}

// -- outcomes --------------------------------------------------------------------------------------

export const KINDS = { merge: 'Merge', mix: 'Mix', import_adapter: 'Import', export_adapter: 'Export',
  gguf: 'GGUF', push: 'Push', picture: 'Picture', bakeoff: 'Bake-off', promote: 'Promote' };
const OUTCOMES = {
  merge: certificate, mix: ({ mix, adapter }) => (mix ? [mixed(mix, adapter)] : []), gguf: exported, export_adapter: exported,
  push: ({ address }) => [h('p', {}, 'Uploaded and verified: ', h('b', {}, address ?? ''))],
};

/** Fill `node` with the outcome of an ended job. */
export async function outcome(job, node) {
  if (job.error) return node.replaceChildren(h('p', { class: 's-error' }, job.error.text));
  const draw = job.state === 'succeeded' && OUTCOMES[job.kind];
  const found = draw && await api(`/api/adapters/jobs/${job.id}`).catch(() => null);
  return node.replaceChildren(...(found ? draw(found) : []));
}

const written = (adapter, ...links) => h('p', {}, h('span', { class: 's-path' }, adapter), ' ', links,
  button('Push to the hub …', () => askPush(adapter), 's-tool'));

/** What an export wrote, and how it compared when it was read back. */
function exported({ check, adapter }) {
  const compared = check?.max_error != null;
  const words = [compared && `Read back: largest logit error ${number(check.max_error, 2)} (allowed ${
    number(check.tolerance, 2)}), ${check.tokens_changed} of ${check.tokens_compared} tokens changed.`,
  check?.note, ...(check?.notes ?? [])].filter(Boolean).join(' ');
  const path = button('Copy path', () => copy(adapter, path), 's-tool');
  return [words ? h('p', { 'data-testid': 'export-check' }, words) : '', written(adapter, path)];
}

function mixed({ how, error }, adapter) {
  const exact = how === 'concatenate';
  return h('p', {}, `"${short(adapter)}" is ${exact ? 'exactly the weighted sum' : how.toUpperCase()}, `,
    h('b', {}, `${number(100 * error, 2)}\u202f%`),
    exact ? ' away from it by rounding.' : ' away from the weighted sum (truncation included).');
}

/** The certificate: the written files were loaded by a fresh process and answered like the stack. */
function certificate({ certificate: found, adapter }) {
  if (!found || found.max_error === undefined) return [quiet(`Merged into ${adapter}; its certificate is missing.`)];
  const error = `${number(found.max_error, 2)} (allowed ${number(found.tolerance, 2)})`;
  return [h('details', { class: 's-certificate', 'data-testid': 'certificate' },
    h('summary', {}, `Certificate: reloaded, it answers like the stack; largest logit error ${error}`),
    pairs([
      ['Largest logit error', error], ['Mean logit error', number(found.mean_error, 2)],
      ['Tokens changed', `${found.tokens_changed} of ${found.tokens_compared}`],
      ['Precision', `${found.base_precision} base, ${found.merged_precision} result`],
      ['Merged', found.merged.join(', ')],
      found.left.length && ['Stays an adapter', found.left.map(short).join(', ')],
      ['Files', found.files?.slice(0, 16)],
    ])),
  written(adapter, h('a', { href: `/compare?lane=${encodeURIComponent(adapter)}` }, 'Chat with it'), ' ')];
}
