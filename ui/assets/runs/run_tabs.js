// The tabs of a run (log, samples, checkpoints, config, history) and, after running out of memory, the
// changes that make it fit. Everything a run wrote is shown as text.

import { ago, api, badge, button, clock, copy, count, h, number, text, toast } from '../core/dom.js';
import { useCheckpoint } from '../core/lanes.js';
import { poke } from '../core/live.js';

export const quiet = (words) => h('p', { class: 's-quiet' }, words);

export function snippet(title, code) {
  return h('div', { class: 's-snippet' },
    h('header', {}, title, button('Copy', (e) => copy(code, e.currentTarget), 's-tool')),
    h('pre', {}, code));
}

/** By the view's name: `(content, job) => node or nodes`. */
export const views = {
  log(lines) {
    return lines ? h('pre', {}, lines) : quiet('The log is empty until the run starts.');
  },

  samples(rows) {
    if (!rows.length) return quiet('Answers to a few fixed prompts appear here, before the first step and at each evaluation.');
    const films = Map.groupBy(rows, (row) => row.prompt);
    return [...films].map(([prompt, shots]) => h('section', { class: 's-film' },
      h('h3', {}, prompt),
      h('ol', { tabindex: '0', 'aria-label': prompt }, shots.map((shot, i) => {
        const same = i > 0 && shot.text === shots[i - 1].text;
        return h('li', { class: 's-sample', 'data-same': same },
          h('header', {}, shot.step ? `Step ${count(shot.step)}` : 'Before training', same && ' · the same'),
          h('p', {}, shot.text || '–'));
      }))));
  },

  checkpoints(rows, job) {
    if (!rows.length) return quiet('No checkpoint yet. One is saved regularly, and whenever you pause.');
    return h('table', { class: 's-table' },
      h('thead', {}, h('tr', {}, ['Step', 'Held-out loss', 'Saved', '', 'Folder'].map((name) =>
        h('th', { scope: 'col' }, name)))),
      h('tbody', {}, [...rows].reverse().map((row) => h('tr', {}, h('td', {}, count(row.step)),
        h('td', {}, number(row.eval_loss)), h('td', {}, ago(row.time)),
        h('td', {}, job.method_name !== 'full' && useCheckpoint(job.model, `${job.id}@${row.step}`)),
        h('td', { class: 's-path' }, row.path)))));
  },

  config({ yaml, command, error }) {
    return [error && h('p', { class: 's-warning' }, error),
      command && snippet('Command line', command), snippet('spec.yaml', yaml)].filter(Boolean);
  },

  history({ events }) {
    return h('table', { class: 's-table' },
      h('thead', {}, h('tr', {}, ['Time', 'State', 'By', 'Why'].map((name) =>
        h('th', { scope: 'col' }, name)))),
      h('tbody', {}, [...events].reverse().map((row) => h('tr', {}, h('td', {}, clock(row.time, true)),
        h('td', {}, badge(row.dst)), h('td', {}, row.actor), h('td', {}, row.why)))));
  },
};

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
