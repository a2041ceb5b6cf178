// A checkpoint as something to use: open it as a lane beside its base, or make it the run's adapter.

import { api, count, h, sureButton, toast } from './dom.js';

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
