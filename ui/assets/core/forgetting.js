// What a run forgot: one card for the run and the passport of its adapter.

import { count, h, number, quiet, table } from './dom.js';

const range = (pair) => (pair ? `95\u202f%: ${number(pair[0], 3)} to ${number(pair[1], 3)}` : '');

/** `found`: the measurement as the run stores it; nothing for a run that has none. */
export function forgettingCard(found) {
  if (found?.loss_before == null) return '';
  const figures = [
    ['KL from the base', number(found.forgetting, 3), found.forgetting == null ? 'not measured'
      : `nats per token of its own answers; ${range(found.interval)}`],
    ['Answers changed', `${count(found.changed)} of ${count(found.prompts)}`, 'greedy, to neutral prompts'],
    ['General loss', `${number(found.loss_before, 3)} → ${number(found.loss_after, 3)}`, range(found.rise_interval)],
  ];
  return h('section', { class: 's-forgetting', 'data-testid': 'forgetting' },
    h('h2', {}, 'What it forgot'),
    h('dl', {}, figures.map(([name, value, note]) => h('div', {}, h('dt', { class: 's-quiet' }, name),
      h('dd', {}, h('b', {}, value), ' ', h('span', { class: 's-quiet' }, note))))),
    h('details', {}, h('summary', {}, 'By domain'),
      table(['Texts', 'Loss before', 'After'], Object.entries(found.domains).map(([name, [before, after]]) =>
        [name, number(before, 3), number(after, 3)]), { class: 's-table s-numbers' })),
    quiet(`Measured in ${number(found.seconds, 2)}\u202fs on ${count(found.rows)} texts of ${
      found.set === 'embedded' ? 'the embedded general set' : found.set}, which the training data does not touch.`));
}
