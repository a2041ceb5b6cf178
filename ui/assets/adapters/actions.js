// Dialogs that merge, mix, evaluate, import, export and compare adapters, each of which queues a job.

import { api, go, short, t } from '../core/dom.js';
import { askAction } from '../core/form.js';
import { writeLane } from '../core/lanes.js';
import { localTime } from '../runs/queue.js';

/** What every dialog on a stack of adapters begins with. */
const stacked = (page, adapters) => ({ known: page, stack: adapters,
  values: { 'model.path': adapters.find((one) => one.base)?.base ?? page.models[0]?.path } });

/** Return why adapters cannot be merged together; empty if they can. */
export function unmergeable(adapters) {
  const never = adapters.find((one) => !one.mergeable);
  if (never) return t`${never.method_title} cannot be merged into the weights.`;
  return new Set(adapters.map((one) => one.base)).size > 1 ? t`These adapters are of different bases.` : '';
}

/** Those that can join others in one stack. */
const joining = (page, [first]) => ({ models: page.models,
  adapters: page.adapters.filter((one) => one.mergeable && (!first || one.base === first.base)) });

export const askMerge = (page, adapters) => askAction('merge', { ...stacked(page, adapters),
  known: joining(page, adapters) });

export const askMix = (page, adapters) => askAction('mix', { ...stacked(page, adapters),
  known: { models: page.models, adapters: joining(page, adapters).adapters.filter((one) => one.is_low_rank) } });

/** Measure adapters on a dataset; without any the base. */
export const askEvaluate = (page, adapters) => askAction('evaluate', { ...stacked(page, adapters),
  bare: true });

export const askImport = (page) => askAction('import', { known: page });

/** Export one adapter in any format, or several as one GGUF. */
export function askExport(page, adapters) {
  const [one] = adapters;
  if (adapters.length > 1) return askAction('gguf', { ...stacked(page, adapters), known: joining(page, adapters) });
  return askAction('export', { known: page, fixed: { name: one.path }, title: t`Export “${one.name}”`,
    allow: { form: one.formats }, values: { form: one.formats[0] } });
}

/** `set`: the assignments of the Train form; without them the dialog asks for base, data and settings. */
export async function askBakeoff({ models, set = null, impossible = [] }) {
  const all = await api('/api/do/methods', {});
  const methods = all.filter((one) => !impossible.includes(one.name));
  const now = localTime(Date.now() / 1000).slice(5).replace(':', '.');
  return askAction('bakeoff', { known: { methods, models }, fixed: set ? { set } : {},
    only: [...(set ? [] : ['model', 'data', 'set']), 'methods', 'best_rates', 'seeds', 'prompt', 'name'],
    values: { name: `bake-off ${now}`, set: ['train.max_steps=60'],
      methods: methods.filter((one) => one.capabilities.stackable).map((one) => one.name).join() },
    done: ({ name }) => go(`/adapters?bakeoff=${encodeURIComponent(name)}`) });
}

export const KEPT = { recipes: t`Save a recipe …`, mix: t`Make an adapter …`, merge: t`Merge into a model …` };

/** Ask for a name and save a mix as a recipe, or queue the adapter or the model that it makes. */
export function keepMix(kind, { model, stack, name }, done) {
  const usual = name ?? stack.map((part) => `${short(part.name)} ${part.weight}`).join(' ');
  if (kind === 'recipes') {
    return askAction(kind, { title: t`Save a recipe`, label: t`Save`, only: ['save'],
      fixed: { lane: writeLane({ model, stack }) }, note: t`Every lane on this base can use it.`,
      values: { save: usual }, done: () => { done(); } });
  }
  return askAction(kind, { fixed: { 'model.path': model, stack }, values: { name: usual }, done: (made) => {
    done();
    return t`Queued as “${made.name}”; Runs shows its progress.`;
  } });
}
