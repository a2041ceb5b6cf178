// Ways out of a full memory, a button each: what it changes, and whether the result stays the same.
// Each queues the run again with that one change; the run that failed stays as it is.

import { api, button, h, text, toast } from './dom.js';
import { poke } from './live.js';

export function remedies(job) {
  const intro = h('p', { class: 's-quiet' });
  const list = h('ul', { class: 's-remedies', 'aria-label': 'Ways to make it fit' });
  api(`/api/refit/${job}`).then(({ remedies: found }) => {
    text(intro, found.length ? 'Train it again with one of these changes:'
      : 'No setting makes it small enough: choose a smaller model, or a device with more memory.');
    list.replaceChildren(...found.map((one, i) => row(job, one, i === 0 && one.same_result)));
  }, (error) => text(intro, error.message));
  return [intro, list];
}

function row(job, remedy, best) {
  const id = `remedy-${remedy.name}`;
  const kept = remedy.same_result ? 'Same result.' : 'The result changes.';
  const fate = h('span', { 'data-same': String(remedy.same_result), role: 'status' }, remedy.lacks || kept);
  return h('li', {},
    button(remedy.title, () => again(job, remedy, fate), best ? 's-primary' : '',
      { 'aria-describedby': id, 'data-remedy': remedy.name, disabled: Boolean(remedy.lacks) }),
    h('p', { id }, remedy.about, ' ', fate));
}

async function again(job, remedy, fate) {
  try {
    const queued = await api(`/api/refit/${job}`, { name: remedy.name });
    text(fate, `Queued as run ${queued.job}.`);
    toast(`Queued again as run ${queued.job}.`);
  } catch (error) {
    toast(error.message, 'error');
  }
  poke();
}
