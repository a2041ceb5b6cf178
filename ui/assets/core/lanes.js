// Lanes of Compare as text (MODEL~NAME:WEIGHT+NAME:WEIGHT), links to them and to Train, and checkpoints as lanes.

import { at, count, go, h, leftAt, send, short, sureButton, t, toast } from './dom.js';

const NAME = /^(\d+)@(\d+)$/;

export const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ';

/** The colour of a lane or run; the theme has ten. */
export const hueOf = (index) => `var(--s-run-${index % 10})`;

const SUFFIX = /^(.*)~([^~]+:-?[\d.]+)$/;
const BETWEEN = /(?<=:-?[\d.]+)[+ ]/; // an address turns a plus that was typed into a space

/** "starter~pirate:1+terse:0.5 · note" -> {model, stack}; names are encoded, so they may hold anything. */
export function parseLane(words) {
  const [lane, note] = words.split(/ · (.*)/s), more = note ? { note } : {};
  const found = SUFFIX.exec(lane);
  if (!found) return { model: lane, stack: [], ...more };
  const stack = found[2].split(BETWEEN).map((part) => {
    const at = part.lastIndexOf(':');
    return { name: decodeURIComponent(part.slice(0, at)), weight: Number(part.slice(at + 1)) };
  });
  return { model: found[1], stack, ...more };
}

export function writeLane({ model, stack }) {
  const parts = stack.map(({ name, weight }) =>
    `${encodeURIComponent(name).replaceAll('~', '%7E').replaceAll('%40', '@')}:${weight}`);
  return parts.length ? `${model}~${parts.join('+')}` : model;
}

/** An adapter's name as pages say it; a checkpoint (`7@100`) is a step of its run. */
export const called = (name) => name.replace(NAME, t`run $1 at step $2`).split('/').pop();

export function laneName({ model, stack, note }) {
  return [short(model), ...stack.map(({ name, weight }) =>
    weight === 1 ? called(name) : `${called(name)} × ${weight}`)].join(' + ') + (note ? ` · ${note}` : '');
}

/** What an OpenAI client calls a lane: starter+pirate:0.5+terse */
export const clientName = ({ model, stack }) => [model, ...stack.map(({ name, weight }) =>
  name.replace(/[%+:]/g, encodeURIComponent) + (weight === 1 ? '' : `:${weight}`))].join('+');

const lane = (model, name) => ({ model, stack: name ? [{ name, weight: 1 }] : [] });

const compareLink = (...lanes) => `/compare?${lanes.map((one) =>
  `lane=${encodeURIComponent(writeLane(one))}`).join('&')}`;

export const blindTest = ({ blind_test: { lanes } }) =>
  `/compare?${lanes.map((one) => `lane=${encodeURIComponent(one)}`).join('&')}&blind=on`;

export const COMPARED = new Set(['train', 'arrive', 'mix', 'merge']);
export const compareAddress = ({ kind, model, adapter, name, trains_base: whole }) =>
  compareLink(lane(model), kind === 'merge' || whole ? lane(adapter) : lane(model, name));

/** Base and adapters side by side; a fully fine-tuned model is a lane of its own. */
export function compareAdapters(adapters) {
  const base = adapters[0].base || 'starter';
  return compareLink(lane(base), ...adapters.map((one) =>
    (one.is_model ? lane(one.path) : lane(one.base || base, one.name))));
}

/** Return true if a name is a checkpoint (`7@100`: run 7 at step 100), not an adapter. */
export const isCheckpoint = (name) => NAME.test(name);

/** Open Compare with the checkpoint of a run that is nearest to a step, or show why there is none. */
export async function openCheckpoint(job, step) {
  if (!job || job.kind !== 'train') return;
  if (job.trains_base) {
    toast(t`This run trained the whole model: its checkpoints are models, not lanes.`, 'error');
    return;
  }
  const found = await send(`/api/live?detail=${job.id}&view=checkpoints`);
  if (!found) return;
  const steps = found.detail.content?.map((row) => row.step) ?? [];
  if (!steps.length) {
    toast(t`${job.name} has no checkpoint yet: “Save now” under More saves one.`, 'error');
    return;
  }
  const near = steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a));
  toast(t`Opening ${job.name} at step ${count(near)} …`);
  go(compareCheckpoint(job, near));
}

export const compareCheckpoint = ({ id, model }, step) => compareLink(lane(model), lane(model, `${id}@${step}`));

export const checkpointActions = (job, step) => h('span.s-actions',
  h('a', { href: compareCheckpoint(job, step) }, t`Compare`), promoteButton(`${job.id}@${step}`));

export function promoteButton(name) {
  const node = sureButton(t`Promote`, t`Make it the adapter?`, () => send('/api/do/promote', { checkpoint: name },
    (made) => t`Queued as “${made.name}”. The current adapter stays beside it.`), 's-tool');
  node.title = t`Make this checkpoint the run's adapter`;
  return node;
}

/** The address of the Train page as it was left, with these assignments of fields; `without` drops others. */
export function trainWith(assigned, without = /^$/) {
  const address = new URLSearchParams(leftAt(at('/'))), field = (one) => one.split('=')[0];
  const kept = address.getAll('set').filter((one) => !without.test(one)
    && !assigned.some((other) => field(other) === field(one)));
  address.delete('set');
  for (const one of [...kept, ...assigned]) address.append('set', one);
  return `/?${address}`;
}
