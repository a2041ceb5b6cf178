// The X-ray beside the form: the first rows as the trainer sees them, and what the context cuts.

import { api, button, count, h, newest, quiet, redraw, say, t, text, word } from '../core/dom.js';
import { drawn } from '../data/xray.js';

export class FirstRows {
  constructor(page) {
    this.page = page;
    this.warning = h('div', { role: 'status', testid: 'cut' });
    this.words = quiet('');
    this.marked = h('span', t`trained`);
    this.list = h('div.s-first-rows', { testid: 'first-rows' });
    this.element = h('section.s-card', { hidden: true }, h('header.s-row-between',
      h('h2', t`The first rows`), h('span.s-xray-legend', [['trained', this.marked],
        ['masked', t`read`], ['truncated', t`cut`]].map(([state, words]) => h('span',
        h('i.s-token', { 'data-state': state }, 'Aa'), words)))), this.warning, this.words, this.list);
  }

  async take(found) {
    this.element.hidden = !found;
    const first = await newest(this, found && api('/api/train/rows', { set: found.set })
      .catch((failed) => ({ error: { text: failed.message } })));
    if (!first) return;
    const { rows = [], error, unknown = error?.text ?? '' } = first;
    const { 'train.loss': loss = 'sft' } = found.values;
    const what = { sft: t`trained`, grpo: t`to compare with` }[loss] ?? t`in the loss`;
    text(this.marked, what);
    say(this.words, unknown);
    const paired = ({ side }) => side === 'chosen' || side === 'rejected'; // has a line of its own on each
    redraw(this.list, ...rows.map((row) => h('div', row.side === 'rejected' && !row.problem ? null
      : quiet(row.problem ? t`Row ${row.row} is dropped: ${row.problem}` : paired(row) ? t`Row ${row.row}`
        : t`Row ${row.row}${row.side && `, ${word(row.side)}`}: ${count(row.num_tokens)} tokens, ${
          count(row.num_trained)} ${what}${row.num_truncated ? t`, ${count(row.num_truncated)} cut` : ''}`),
    h('div.s-tokens', { tabindex: '0', role: 'group', label: t`Row ${row.row} as tokens` },
      drawn([row]), row.tokens.length < row.num_tokens && '…'))));
  }

  /** Say which share of all rows is cut, and what helps. */
  cut(found) {
    if (!found?.rows) return redraw(this.warning);
    const ends = found.rows - found.start, share = Math.max(1, Math.round((100 * found.rows) / found.of));
    const most = Math.min(found.longest, found.context);
    return redraw(this.warning, h('p.s-warning',
      t`${share} % of the rows (${count(found.rows)} of ${count(found.of)}) are cut at ${count(found.limit)} tokens: ${
        [ends && t`${count(ends)} lose the end of their answer`, found.start
          && t`${count(found.start)} the beginning of their question`].filter(Boolean).join(', ')}. `,
      most > found.limit ? button(t`Train up to ${count(most)} tokens`, () => {
        this.page.settings.get('data.max_length').fill(most);
        this.page.changed();
      }, 's-tool') : t`The longest has ${count(found.longest)}, and this model reads ${count(found.context)}: take a
        model with a longer context, or split the rows.`));
  }
}
