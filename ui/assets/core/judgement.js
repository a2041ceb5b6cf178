// How far a judge can be trusted: its agreement with the user, with itself, and its position bias.

import { button, count, go, h, pairs, percent, quiet, send, t, table } from './dom.js';
import { askAction } from './form.js';

/** Half counts are of votes or pairs that went both ways. */
const some = (value) => (Number.isInteger(value) ? count(value) : String(value));

/** A share as `17 of 20 (95 %: 64 % to 95 %)`. */
export const share = ({ count: own, of, low, high }) => (of ? t`${some(own)} of ${count(of)} (95\u202f%: ${
  percent(low, 2)} to ${percent(high, 2)})` : '–');

/** `found`: a judgement as the action `judge` shows it. */
export function trust(found) {
  const { agreement, evidence, first, self_agreement: self, unreadable, why } = found;
  return h('div.s-trust', { testid: 'trust' },
    h('p', { class: evidence ? '' : 's-warning' }, evidence
      ? t`It agrees with you in ${some(agreement.count)} of ${count(agreement.of)} votes.` : why),
    pairs([[t`Agreement with your votes`, share(agreement)],
      [t`Agreement of both orders`, share(self)],
      [t`For the answer shown first`, t`${share(first)}; half is unbiased`],
      unreadable.count > 0 && [t`Answers without a verdict`, share(unreadable)],
      [t`Pairs`, t`${count(found.pairs)}, ${count(found.ties)} of them ties`],
      [t`Judge`, found.address || found.judge]]));
}

const WORDS = { 0: 'A', 1: 'B', tie: t`tie`, null: t`no verdict` };

/** The pairs with the judge's reasons, fetched when opened. */
export function reasons({ id }) {
  const body = h('div.s-scroll-x');
  return h('details', { ontoggle: async (event) => {
    if (!event.target.open || body.firstChild) return;
    const found = await send('/api/do/judge', { show: String(id) });
    if (!found) return;
    body.append(table([t`Prompt`, t`Answer A`, t`Answer B`, t`Your vote`, t`Verdict`, t`Reasons`],
      found.rows.map((row) => [row.prompt, ...row.answers, WORDS[row.vote] ?? '', WORDS[row.winner],
        row.reasons.length ? row.reasons.join('\n\n') : quiet(t`Equal answers, not asked`)]),
    { class: 's-table s-reasons' }));
  } }, h('summary', t`Verdicts and reasons`), body);
}

/** Ask for a dataset of a judge's verdicts; only one that counts as evidence has them. */
export const verdictsDataset = ({ id }) => button(t`Make a dataset …`, () => askAction('data.votes', {
  fixed: { source: String(id) }, only: ['kind', 'name'], note: t`Pairs, answers or verdicts of this judge, to train on.
    Your own votes are not among them.`, done: ({ name }) => { go(`/data?name=${name}`); } }), 's-tool');
