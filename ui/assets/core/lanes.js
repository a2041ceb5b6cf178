// Lanes of Compare as text (MODEL~NAME:WEIGHT+NAME:WEIGHT), links to them, and checkpoints as lanes.

import { api, count, h, short, sureButton, toast } from './dom.js';

const SUFFIX = /^(.*)~([^~]+:-?[\d.]+)$/;
const BETWEEN = /(?<=:-?[\d.]+)[+ ]/; // an address turns a plus that was typed into a space

/** "starter~pirate:1+terse:0.5" -> {model, stack}; names are encoded, so they may hold anything. */
export function parseLane(words) {
  const found = SUFFIX.exec(words);
  if (!found) return { model: words, stack: [] };
  const stack = found[2].split(BETWEEN).map((part) => {
    const at = part.lastIndexOf(':');
    return { name: decodeURIComponent(part.slice(0, at)), weight: Number(part.slice(at + 1)) };
  });
  return { model: found[1], stack };
}

export function writeLane({ model, stack }) {
  const parts = stack.map(({ name, weight }) =>
    `${encodeURIComponent(name).replaceAll('~', '%7E')}:${weight}`);
  return parts.length ? `${model}~${parts.join('+')}` : model;
}

/** starter + pirate × 0.5 */
export function laneName({ model, stack }) {
  return [short(model), ...stack.map(({ name, weight }) =>
    weight === 1 ? short(name) : `${short(name)} × ${weight}`)].join(' + ');
}

/** What an OpenAI client calls a lane: starter+pirate:0.5+terse */
export const clientName = ({ model, stack }) => [model, ...stack.map(({ name, weight }) =>
  (weight === 1 ? name : `${name}:${weight}`))].join('+');

export const COMPARED = new Set(['train', 'mix', 'merge']);

export function compareAddress(job) {
  const base = encodeURIComponent(job.model);
  if (job.kind === 'merge') return `/compare?lane=${base}&lane=${encodeURIComponent(job.adapter)}`;
  return `/compare?lane=${base}&lane=${base}~${encodeURIComponent(job.name)}:1`;
}

/** Base and adapters side by side; a fully tuned model is a lane of its own. */
export function compare(adapters) {
  const base = adapters[0].base || 'starter';
  const lanes = [{ model: base, stack: [] }, ...adapters.map((one) => (one.is_model
    ? { model: one.path, stack: [] }
    : { model: one.base || base, stack: [{ name: one.name, weight: 1 }] }))];
  return `/compare?${lanes.map((lane) => `lane=${encodeURIComponent(writeLane(lane))}`).join('&')}`;
}

const NAME = /^\d+@\d+$/;

/** Whether a lane's part is a checkpoint (`7@100`: run 7 at step 100) and not an adapter by name. */
export const isCheckpoint = (name) => NAME.test(name);

export function compareCheckpoint(model, name) {
  const base = encodeURIComponent(model);
  return `/compare?lane=${base}&lane=${base}~${name}:1`;
}

/** Go to Compare with the checkpoint of a run that is nearest to a step, or say why that cannot be. */
export async function openCheckpoint(job, step) {
  if (!job || job.kind !== 'train') return;
  if (job.method_name === 'full') {
    toast('This run trained the whole model: its checkpoints are models, not lanes.', 'error');
    return;
  }
  try {
    const { detail } = await api(`/api/live?detail=${job.id}&view=checkpoints`);
    const steps = detail.content?.map((row) => row.step) ?? [];
    if (!steps.length) {
      toast(`${job.name} has kept no checkpoint yet: “Save now” under More keeps one.`, 'error');
      return;
    }
    const near = steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a));
    toast(`Opening ${job.name} at step ${count(near)} …`);
    location.href = compareCheckpoint(job.model, `${job.id}@${near}`);
  } catch (error) { toast(error.message, 'error'); }
}

export function useCheckpoint(model, name) {
  return h('span', { class: 's-actions' }, h('a', { href: compareCheckpoint(model, name) }, 'Compare'),
    promoteButton(name));
}

export function promoteButton(name) {
  const node = sureButton('Promote', 'Make it the adapter?', async () => {
    try {
      const made = await api('/api/chat/promote', { checkpoint: name });
      toast(`Queued as “${made.name}”. The adapter of now is kept beside it.`);
    } catch (error) { toast(error.message, 'error'); }
  }, 's-tool');
  node.title = "Make this checkpoint the run's adapter";
  return node;
}
