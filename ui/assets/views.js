// What stands under a run's tabs: its log, samples, checkpoints, config and history, each drawn from
// what the studio tells of it. Everything a run wrote is shown as text.

import { ago, badge, button, clock, copy, count, h, number } from './dom.js';
import { useCheckpoint } from './checkpoint.js';

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
