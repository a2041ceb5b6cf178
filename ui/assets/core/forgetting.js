// What a run forgot: one card for the run and the passport of its adapter.

import { count, h, number, percent, quiet, t, table } from './dom.js';

const chance = (loss) => percent(Math.exp(-loss), 2);
const range = (pair) => (pair ? t`95\u202f%: ${number(pair[0], 3)} to ${number(pair[1], 3)}` : '');

/** `found`: the measurement as the run stores it; nothing for a run that has none. */
export function forgettingCard(found) {
  if (found?.loss_before == null) return '';
  const figures = [
    [t`Distance from the base`, number(found.forgetting, 3), found.forgetting == null ? t`not measured`
      : t`0 is the base: KL divergence per token of its own answers, in nats; ${range(found.interval)}`],
    [t`Answers changed`, t`${count(found.changed)} of ${count(found.prompts)}`, t`greedy, to neutral prompts`],
    [t`Loss on general texts`, `${number(found.loss_before, 3)} → ${number(found.loss_after, 3)}`,
      t`a right token had a chance of ${chance(found.loss_before)}, now ${chance(found.loss_after)}`],
  ];
  return h('section.s-forgetting', { testid: 'forgetting' },
    h('h2', t`What it forgot`),
    h('dl', figures.map(([name, value, note]) => h('div', h('dt.s-quiet', name),
      h('dd', h('b', value), ' ', h('span.s-quiet', note))))),
    h('details', h('summary', t`By domain`),
      table([t`Texts`, t`Loss before`, t`After`], Object.entries(found.domains).map(([name, [before, after]]) =>
        [name, number(before, 3), number(after, 3)]), { class: 's-table s-numbers' })),
    quiet(t`Measured in ${number(found.seconds, 2)}\u202fs on ${count(found.rows)} texts of ${
      found.set === 'embedded' ? t`the embedded general set` : found.set}, which the training data does not touch.`));
}
