// The table of a bake-off: the same data, budget and seed over several methods, queued as siblings.

import { button, bytes, compact, duration, h, number, redraw, remember, send, t } from '../core/dom.js';
import { isLive } from '../core/live.js';
import { RankedTable, scatter } from '../core/ranked.js';
import { takeTable } from '../core/take_away.js';

const FORMATS = { bytes, count: compact, s: duration, '×': (value) => `×\u202f${number(value, 3)}` };
const OWN = { changed: (row) => t`${row.changed} of ${row.neutral_prompts}`,
  seconds_to_loss: (row) => h('span', { title: t`to ${number(row.target_loss)}` }, duration(row.seconds_to_loss)) };
const METHOD = { title: t`Method`, value: (row) => row.title,
  show: ({ title, runs, seeds }) => h('a', { href: `/runs?run=${runs.join()}` }, title,
    seeds < runs.length && ` (${t`${seeds} of ${runs.length}`})`) };

function figure({ key, unit, ...own }) {
  const spread = (row) => row[`${key}_interval`], show = OWN[key] ?? ((row) => (FORMATS[unit] ?? number)(row[key]));
  return { ...own, spread, value: (row) => row[key], show: (row) => (row[key] == null ? '–'
    : spread(row) ? [show(row), ` ±\u202f${number(spread(row), 2)}`] : show(row)) };
}

/** The result table of one bake-off; it fills as its runs end. `closed` is called by its Close button. */
export class Results {
  constructor(closed = null) {
    this.closed = closed;
    this.element = h('section.s-results', { hidden: true, testid: 'bakeoff' });
  }

  async show(name) {
    this.name = name;
    const found = await send('/api/do/bakeoff', { show: name });
    if (this.name !== name) return;
    if (found) this.draw(found); else this.hide();
  }

  hide() {
    this.name = null;
    this.element.hidden = true;
    if (this.closed) remember({ bakeoff: null });
  }

  /** Take the queue's jobs; fetch the table again when one of its runs changed. */
  take(jobs) {
    if (!this.name) return;
    const moved = jobs.filter((job) => job.sweep === this.name)
      .map((job) => `${job.id} ${job.state} ${isLive(job) ? '' : job.eval_loss}`).join();
    if (moved === this.moved) return;
    this.moved = moved;
    this.show(this.name);
  }

  draw({ columns, rows, prompts }) {
    this.table ??= new RankedTable([METHOD, ...columns.map(figure)], { order: columns[0].title,
      rest: (row) => row.state !== 'succeeded'
        && h('span', { class: row.error ? 's-error' : 's-quiet' }, row.error || row.state) });
    const ended = rows.filter((row) => row.state === 'succeeded');
    const asked = prompts.filter((_, place) => rows.some((row) => row.answers.length > place));
    const points = ended.filter((row) => row.eval_loss != null && row.forgetting != null)
      .map((row) => ({ x: row.eval_loss, y: row.forgetting, label: row.title }));
    this.table.draw(rows);
    this.element.hidden = false;
    redraw(this.element, h('header', h('h2', this.name),
      h('span.s-quiet', ended.length < rows.length ? t`${ended.length} of ${rows.length} trained` : ''),
      h('span.s-actions', h('a.s-button', {
        href: `/runs?run=${rows.flatMap((row) => row.runs).join()}` },
        t`Overlay the curves`), takeTable(t`Bake-off ${this.name}`, () => this.table),
      this.closed && button(t`Close`, () => this.closed()))),
    this.table.element, scatter(points, { x: t`Held-out loss (learned)`, y: t`KL from the base (forgot)` }),
    asked.length ? h('details.s-bin', h('summary', t`Sample answers`), asked.map((prompt, place) => [
      h('h3', prompt), h('div.s-sampled', rows.filter((row) => row.answers.length > place).map((row) =>
        h('article', h('h4', row.title), h('p', row.answers[place]))))])) : '');
  }
}
