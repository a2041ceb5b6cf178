// A table that is sorted by a click on a heading, with the best value of each column marked; and a
// scatter plot of two of its columns.

import { h, number, redraw, t } from './dom.js';
import { resolved, svg, takeAway, tick } from './take_away.js';

/** `columns`: {title, hint, value(row), spread(row), show(row), best: 'min' | 'max', first(row): marked as best,
 *  words: true for text}; `rest(row)` fills the columns after the first of a row that has no values; rows for which
 *  `first(row)` holds stay on top; `empty` keeps columns without values. The order survives a new `draw(rows)`. */
export class RankedTable {
  constructor(columns, { rest = () => null, first = () => false, order = null, falls = false,
    empty = false, onSort = () => {} } = {}) {
    Object.assign(this, { columns, rest, first, order, falls, empty, onSort });
    this.element = h('div.s-scroll', { tabindex: '0', role: 'group', label: t`Table` });
  }

  draw(rows) {
    this.rows = rows;
    const { columns } = this, full = rows.filter((row) => !this.rest(row));
    const shown = columns.filter((column, i) => !i || this.empty || full.some((row) => column.value(row) != null));
    const best = new Map(shown.filter((one) => one.best).map((one) => {
      const values = full.map(one.value).filter((value) => value != null);
      return [one, values.length > 1 ? Math[one.best](...values) : null];
    }));
    const key = shown.find((one) => one.title === this.order);
    const sorted = [...rows].sort((a, b) => Boolean(this.rest(a)) - Boolean(this.rest(b))
      || Boolean(this.first(b)) - Boolean(this.first(a))
      || (key ? (this.falls ? -1 : 1) * compare(key.value(a), key.value(b)) : 0));
    const head = (one) => h('th', { scope: 'col', title: one.hint ?? '', class: one.words && 's-plain',
      'aria-sort': one === key ? (this.falls ? 'descending' : 'ascending') : 'none' },
    h('button.s-sort', { onclick: () => this.sort(one) }, one.title,
      one === key && h('span', { 'aria-hidden': 'true' }, this.falls ? ' ↓' : ' ↑')));
    const cell = (row, one) => {
      const value = one.value(row), text = one.show ? one.show(row) : value ?? '–';
      const first = one.first ? one.first(row) : best.get(one) != null && value === best.get(one);
      return h('td', { class: one.words && 's-plain' }, first ? h('b', { title: t`best` }, text) : text);
    };
    Object.assign(this, { shown, sorted });
    redraw(this.element, h('table.s-table.s-numbers',
      h('thead', h('tr', shown.map(head))),
      h('tbody', sorted.map((row) => {
        const rest = this.rest(row);
        return h('tr', rest ? [cell(row, shown[0]), h('td', { colspan: shown.length - 1 }, rest)]
          : shown.map((one) => cell(row, one)));
      }))));
  }

  /** The values of what is shown, titles first, each spread in a column of its own. */
  values() {
    const spreads = (one) => one.spread && this.sorted.some(one.spread);
    const columns = this.shown.flatMap((one) => [one, ...(spreads(one)
      ? [{ title: `${one.title} ±`, value: one.spread }] : [])]);
    return [columns.map(({ title }) => title), ...this.sorted.map((row) => {
      const rest = this.rest(row);
      return rest ? [columns[0].value(row), rest.textContent] : columns.map((one) => one.value(row));
    })];
  }

  sort(column) {
    const again = this.order === column.title;
    this.falls = again ? !this.falls : column.best === 'max';
    this.order = column.title;
    this.onSort(this.order);
    this.draw(this.rows);
    this.element.querySelector('[aria-sort]:not([aria-sort=none]) button')?.focus();
  }
}

function compare(a, b) {
  if (a == null || b == null) return (a == null) - (b == null);
  return typeof a === 'string' ? a.localeCompare(b) : a - b;
}

/** Points `{x, y, label, few}` on two axes, both better when lower; nothing for fewer than two. A filled point is one
 *  that no other beats on both, and that does not rest on few rows. */
export function scatter(points, { x: xTitle, y: yTitle }) {
  if (points.length < 2) return '';
  const [width, height, left, base] = [innerWidth < 700 ? 340 : 640, 300, 56, 256];
  const scale = (key, from, to) => {
    const values = points.map((one) => one[key]), low = Math.min(...values), high = Math.max(...values);
    const at = (value) => from + (to - from) * (high > low ? (value - low) / (high - low) : 0.5);
    return { at, ticks: high > low ? [low, (low + high) / 2, high] : [low] };
  };
  const across = scale('x', left + 24, width - 90), up = scale('y', base - 16, 24);
  const beaten = (one) => one.few || points.some((other) => !other.few && other.x <= one.x && other.y <= one.y
    && (other.x < one.x || other.y < one.y));
  const placed = [];
  const mark = (one) => {
    const x = across.at(one.x), before = x > width * 0.7; // the name would leave the picture
    let y = up.at(one.y);
    const dot = svg('circle', { cx: x, cy: y, r: 5, class: beaten(one) ? 's-beaten' : 's-best' },
      svg('title', {}, `${one.label}: ${number(one.x)}, ${number(one.y)}`));
    while (placed.some(([px, py]) => Math.abs(px - x) < 110 && Math.abs(py - y) < 13)) y -= 13; // names apart
    placed.push([x, y]);
    const side = before ? { x: x - 9, 'text-anchor': 'end' } : { x: x + 9 };
    return [dot, svg('text', { ...side, y: y + 4 }, one.label)];
  };
  const about = t`${yTitle} against ${xTitle}: ${points.map((one) => `${one.label} ${number(one.x)}, ${number(one.y)}`)
    .join('; ')}`;
  const drawn = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': about },
    svg('path', { d: `M${left} 12V${base}H${width - 12}`, class: 's-axis' }),
    across.ticks.map((value) => tick(across.at(value), base + 16, number(value, 3))),
    up.ticks.map((value) => tick(left - 6, up.at(value) + 4, number(value, 3), 'end')),
    tick(width / 2, height - 8, `${xTitle} →`),
    tick(-base / 2, 12, `${yTitle} →`, 'middle', { transform: 'rotate(-90)' }),
    [...points].sort((a, b) => b.y - a.y).map(mark));
  return h('figure.s-scatter', { testid: 'scatter' }, drawn,
    h('figcaption.s-quiet.s-row-between', h('span', t`Lower left is better. Filled: no other is better on both.`,
      points.some((one) => one.few) && h('span', ' ', t`Hollow too: fewer than 8 held-out rows.`)),
      takeAway(t`${yTitle} against ${xTitle}`, { drawing: () => ({ markup: resolved(drawn), width, height }),
        rows: () => [[t`Name`, xTitle, yTitle], ...points.map((one) => [one.label, one.x, one.y])] })));
}
