// The Results page: a row per adapter and base, a column per figure that was measured of it. The address holds
// the dataset, the order, pinned rows and hidden columns. A number opens the job that measured it.

import { askEvaluate } from '../adapters/actions.js';
import { button, bytes, h, newest, number, Page, percent, query, quiet, redraw, remember, send, t } from
  '../core/dom.js';
import { box, matcher, options, searchField, select } from '../core/form.js';
import { subscribe } from '../core/live.js';
import { RankedTable, scatter } from '../core/ranked.js';
import { takeTable } from '../core/take_away.js';

const SHOWN = { size_bytes: bytes, win_rate: percent };
const LEARNED = 'eval_loss', FORGOT = 'forgetting';

class ResultsPage extends Page {
  build() {
    Object.assign(this, { data: query().get('data') ?? '', pins: new Set(query().getAll('pin')),
      off: new Set(query().getAll('hide')) });
    this.search = searchField(t`Search adapters and methods`, () => this.draw());
    this.datasets = select([], '', (data) => { this.data = data; this.keep(); }, { label: t`Trained on` });
    this.columns = h('details.s-columns-choice');
    this.body = h('div.s-stack');
    this.append(h('h1.s-hidden', t`Results`), h('div.s-library', { testid: 'results' },
      h('div.s-library-bar', this.search, this.datasets, this.columns, h('span.s-actions',
        button(t`Evaluate …`, () => this.evaluate()),
        this.take = h('span'))), this.body));
    subscribe({ element: this, onEnded: () => this.refresh() });
    this.refresh();
  }

  async refresh() {
    this.found = await newest(this, send('/api/do/results', {})) ?? this.found;
    if (this.found) this.draw();
  }

  keep() {
    remember({ data: this.data || null, pin: [...this.pins], hide: [...this.off] });
    this.draw();
  }

  draw() {
    const { columns, rows } = this.found;
    const sets = [...new Set(rows.map((row) => row.data).filter(Boolean))].sort();
    if (!sets.includes(this.data)) this.data = '';
    redraw(this.datasets, ...options([['', t`All datasets`], ...sets.map((one) => [one, t`Trained on ${one}`])],
      this.data));
    this.columns.hidden = !columns.length;
    redraw(this.columns, h('summary.s-button', t`Columns`), h('div', columns.map((one) =>
      h('label', box({ checked: !this.off.has(one.key),
        onchange: (event) => this.flip(this.off, one.key, !event.target.checked) }), one.title))));
    if (!rows.length) {
      redraw(this.body, h('div.s-welcome', h('h2', t`Nothing is measured yet`),
        h('p', t`Every training run adds a row: what it learned, what it forgot, its size. Evaluations, suites and
          votes add columns.`),
        h('a.s-button.s-primary', { href: '/' }, t`Train the first adapter`)));
      return;
    }
    const matches = matcher(this.search.value);
    const shown = rows.filter((row) => (!this.data || !row.data || row.data === this.data)
      && matches(row.name, row.method, row.base, row.data));
    const several = (key) => new Set(shown.map((row) => row[key]).filter(Boolean)).size > 1, mixed = several('data');
    this.table = new RankedTable([...this.own(mixed), ...columns.filter((one) => !this.off.has(one.key))
      .map(figure)], {
      order: this.table?.order ?? query().get('order') ?? t`Held-out loss`, falls: this.table?.falls,
      first: (row) => this.pins.has(row.key), onSort: (order) => remember({ order }),
    });
    this.table.draw(shown);
    redraw(this.take, takeTable(t`Results`, () => this.whole(shown)));
    const adapters = shown.filter((row) => row.lacks), missing = adapters.filter((row) => row.lacks.length);
    const points = adapters.filter((row) => !row.lacks.length).map((row) => ({ x: row[LEARNED], y: row[FORGOT],
      few: row.few, label: row.few ? t`${row.name} (${row.few} held-out rows)` : row.name }));
    redraw(this.body, h('section.s-card.s-figures-table', this.table.element,
      quiet(t`Bold: the best of its base, measured the same way. `, adapters.some((row) => row.few)
        && t`* on fewer than 8 held-out rows: may be chance. `, t`A number opens the job that measured it.`)),
    adapters.length < 2 ? '' : h('section.s-card.s-figures-table',
      h('h2', t`Learned × forgot`), mixed || several('base')
        ? quiet(t`Losses on different datasets or bases cannot be compared: choose one above, or search.`)
        : scatter(points, { x: t`Held-out loss`, y: t`Forgetting (KL)` }),
      missing.length > 0 && quiet(t`Not drawn: ${missing.map((row) => `${row.name} (${row.lacks.join(', ')})`)
        .join('; ')}.`)));
  }

  /** The table that files have: rows as shown, with every column. */
  whole(rows) {
    const { order, falls } = this.table, base = { title: t`Base`, words: true, value: (row) => row.base };
    const table = new RankedTable([...this.own(true), base, ...this.found.columns.map(figure)],
      { order, falls, empty: true, first: (row) => this.pins.has(row.key) });
    table.draw(rows);
    return table;
  }

  /** The columns that name a row. */
  own(mixed) {
    return [
      { title: t`Adapter`, value: (row) => row.name, show: (row) => {
        const pinned = this.pins.has(row.key);
        return h('span.s-pinned', button(pinned ? '★' : '☆',
          () => this.flip(this.pins, row.key, !pinned), 's-tool',
          { label: t`Pin ${row.name}`, 'aria-pressed': String(pinned), title: t`Keep at the top` }),
        row.id ? h('a', { href: `/adapters?adapter=${encodeURIComponent(row.id)}` }, row.name) : row.name);
      } },
      { title: t`Method`, words: true, value: (row) => row.method },
      ...(mixed ? [{ title: t`Trained on`, words: true, value: (row) => row.data || null }] : []),
    ];
  }

  flip(set, key, on) {
    set[on ? 'add' : 'delete'](key);
    this.keep();
  }

  async evaluate() {
    const library = await send('/api/adapters');
    if (!library) return;
    const page = { ...library, refresh: () => this.refresh() };
    const pinned = new Set((this.found?.rows ?? []).filter((row) => this.pins.has(row.key)).map((row) => row.id));
    askEvaluate(page, library.adapters.filter((one) => pinned.has(one.id)));
  }
}

/** A column of figures. */
function figure({ key, title, best, job }) {
  return { title, best, value: (row) => row[key], first: (row) => row.best.includes(key), show: (row) => {
    const words = row[key] == null ? '–' : (SHOWN[key] ?? number)(row[key]) + (key === LEARNED && row.few ? '*' : '');
    return job && row[key] != null ? h('a', { href: `/runs?run=${row.jobs[key]}` }, words) : words;
  } };
}

customElements.define('studio-results', ResultsPage);
