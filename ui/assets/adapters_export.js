// Giving adapters away: which form, what it is for, and where it goes. Every export is a queued job that
// is verified after writing; what was found is shown with it (adapters_jobs.js).

import { ask, choice, dialog, input, labelled, modelChoice, stackOf } from './adapters_dialogs.js';
import { h, text } from './dom.js';

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
