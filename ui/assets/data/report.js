// The report of a dataset: import findings, and its statistics on the selected model.

import { ticks } from '../core/chart_canvas.js';
import { api, compact, count, duration, figures, h, newest, pairs, percent, quiet, redraw, t, table, text } from
  '../core/dom.js';
import { labelled, select } from '../core/form.js';
import { resolved, svg, takeAway, tick } from '../core/take_away.js';

const MOST_CHARACTERS = 64 * 1024 ** 2; // more is compared in a terminal

export class Report {
  constructor(page) {
    this.page = page;
    this.found = page.found;
    this.tokens = h('div.s-stack', quiet(t`Counting tokens …`));
    this.element = h('div.s-report', { testid: 'report' },
      h('div.s-stack', h('h2', t`On this model`), this.sum = quiet({ testid: 'sum' }), this.tokens),
      h('div.s-stack', this.rows(), this.contents()));
    this.measure();
  }

  async measure() {
    const { name } = this.found;
    const failed = (words) => redraw(this.tokens, h('p.s-error', { role: 'alert' }, words));
    try {
      const made = await api(`/api/data/${name}/tokens?${this.page.lens.query()}`);
      if (!made.id) return this.show(made);
      redraw(this.tokens, quiet({ role: 'status' },
        t`The dataset is large: a queued job counts its tokens once. The list above shows its progress.`));
      this.page.await(made, () => this.measure(), failed);
    } catch (error) { failed(error.message); }
    return undefined;
  }

  show({ report, steps, epochs, rows_per_step: rowsPerStep, padding_share: padding, seconds }) {
    const low = report.trained_token_share < 0.05;
    const cut = report.truncated;
    text(this.sum, sumWords(report));
    redraw(this.tokens,
      figures([
        [t`Tokens`, compact(report.tokens), count(report.tokens)],
        [t`Carry loss`, percent(report.trained_token_share),
          t`${count(report.trained_tokens)} tokens are trained`, low],
        [t`Cut rows`, count(cut), t`longer than ${count(report.limit)} tokens`, cut > 0],
        [t`Longest row`, count(report.longest), t`tokens`],
        [t`Steps`, count(steps), t`${epochs} epochs of ${count(report.train_examples)} rows, ${rowsPerStep} a step`],
        [t`Packing saves`, percent(padding, 2), t`of what padded batches would compute; packed rows need no padding`],
      ].map(([name, value, title, bad]) => [name, value, '', { title, class: bad ? 's-bad' : '' }]),
      's-figures s-small-figures'),
      h('div', h('h3', t`Length of the rows, in tokens`), bars(report)),
      pairs([[t`A LoRA run takes about`, duration(seconds)], [t`Chat template`,
        `${report.template}: ${report.template_reason}`],
        [t`Context of the model`, t`${count(report.context_length)} tokens; rows are cut at ${
          count(report.limit)}, the lower of this and the maximum length`],
        [t`Tokens cut off`, count(report.truncated_tokens)]]),
      ...report.warnings.map((words) => h('p.s-warning', words)));
  }

  rows() {
    const { rows: { dropped }, problems } = this.found.findings;
    return dropped > 0 && h('div.s-stack', h('h2', t`Dropped rows`),
      table([t`Line`, t`Reason`], problems.slice(0, 12).map((one) => [count(one.line), one.text]),
        { testid: 'dropped' }),
      quiet(dropped > 12 ? t`${count(dropped)} in all. ` : '',
        h('a', { href: `/api/data/${this.found.name}/problems.jsonl`, download: '' }, t`Download the list`)));
  }

  /** The number of rows that another dataset has too, for example one used for evaluation. */
  overlap() {
    const others = this.page.datasets.map((one) => one.name).filter((name) => name !== this.found.name);
    if (!others.length) return null;
    const answer = h('span.s-quiet', { role: 'status', testid: 'overlap' });
    const ask = async (other) => {
      text(answer, other ? t`Comparing …` : '');
      try {
        const found = await newest(answer, other && api('/api/do/data.overlap', { name: this.found.name, other,
          most: MOST_CHARACTERS }));
        if (found) text(answer, found.rows ? t`${count(found.rows)} rows are in both, word for word`
          : t`no row is in both`);
      } catch (error) { text(answer, error.message); }
    };
    return h('div.s-lens', labelled(t`Overlap with`, select([['', '–'], ...others], '', ask,
      { testid: 'overlap-with' })), answer);
  }

  contents() {
    const found = this.found.findings;
    const near = found.near_duplicates;
    return h('div.s-stack', h('h2', t`Contents`),
      pairs([
        near !== null && [t`Near duplicates`, `${count(near)}${found.near_compared < found.rows.kept
          ? t` in the first ${count(found.near_compared)} rows` : ''}`],
        [t`Characters`, t`${compact(found.characters)}, ${percent(found.answer_share, 2)} in answers`],
        [t`Scripts`, shares(found.scripts)], [t`Languages`, shares(found.languages)],
      ]), this.overlap(),
      found.suspicious.length ? [h('h3', t`Check these rows`), table(null, found.suspicious.map((one) => [one.text,
        count(one.rows), h('td.s-path',
          t`line${one.rows > 1 ? 's' : ''} ${one.lines.slice(0, 6).join(', ')}${
          one.rows > 6 ? ' …' : ''}`)]))] : quiet(t`No damaged, hidden or secret-looking text was found.`));
  }
}

export const sumWords = ({ rows, duplicates, train_examples: trained, validation_examples: held }) => [
  t`${count(rows.read)} rows: ${count(rows.dropped)} dropped, ${count(rows.kept)} usable.`,
  trained + held === rows.kept ? t`Of these ${count(trained)} are trained and ${count(held)} held out.`
    : t`They become ${count(trained)} trained and ${count(held)} held-out examples.`,
  duplicates > 0 && t`${count(duplicates)} repeat an earlier row.`].filter(Boolean).join(' ');

const shares = (parts) => Object.entries(parts).sort((a, b) => b[1] - a[1]).slice(0, 5)
  .map(([name, share]) => `${name} ${percent(share, 2)}`).join(', ') || '–';

/** A histogram of row lengths; the part of a bar beyond the limit is cut. */
function bars({ length_histogram: { edges, counts }, limit }) {
  const [width, height, left, base] = [innerWidth < 700 ? 340 : 640, 190, 46, 164];
  const most = Math.max(...counts, 1), last = edges.at(-1);
  const x = (tokens) => left + ((width - left - 8) * tokens) / last, y = (rows) => base - ((base - 10) * rows) / most;
  const bar = (from, to, rows, name) => svg('path', { class: name,
    d: `M${x(from) + 0.5} ${base}V${Math.min(y(rows), base - 1.5)}H${Math.max(x(to) - 0.5, x(from) + 1)}V${base}z` });
  const drawn = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': t`Rows by token length` },
    ticks(0, most, 4, true).map((rows) => [svg('path', { d: `M${left} ${y(rows)}H${width - 8}`, class: 's-grid' }),
      tick(left - 6, y(rows) + 4, compact(rows), 'end')]),
    counts.map((rows, at) => {
      const [from, to] = [edges[at], edges[at + 1]], cut = Math.min(Math.max(limit, from), to);
      return rows ? svg('g', {}, svg('title', {}, t`${count(from)} to ${count(to - 1)} tokens: ${count(rows)} rows`),
        cut > from ? bar(from, cut, rows, 's-within') : [], cut < to ? bar(cut, to, rows, 's-beyond') : []) : [];
    }),
    svg('path', { d: `M${left} ${base}H${width - 8}`, class: 's-axis' }),
    ticks(0, last, width / 100, true).map((tokens) => tick(x(tokens), base + 16, count(tokens))));
  return h('figure.s-bars', { testid: 'lengths' }, drawn, h('figcaption.s-row-between',
    t`Tokens per row`, takeAway(t`Rows by token length`, { drawing: () => ({ markup: resolved(drawn), width, height }),
      rows: () => [[t`From tokens`, t`To tokens`, t`Rows`], ...counts.map((rows, at) => [edges[at], edges[at + 1] - 1,
        rows])] })));
}
