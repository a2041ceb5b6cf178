// The results table: adapters and bases, and every figure that was measured of them.

import { button, bytes, h, number, quiet, send } from '../core/dom.js';
import { RankedTable } from '../core/ranked.js';

const SHOWN = { size_bytes: bytes, win_rate: (value) => `${number(100 * value, 3)}\u202f%` };

export class ResultsTable {
  constructor() {
    this.element = h('section', { class: 's-results', hidden: true, 'data-testid': 'results' });
  }

  async show() {
    const found = await send('/api/do/results', {});
    if (!found) return;
    const columns = [
      { title: 'Adapter', value: (row) => row.name, show: (row) => (row.id
        ? h('a', { href: `/adapters?adapter=${encodeURIComponent(row.id)}` }, row.name) : row.name) },
      { title: 'Method', value: (row) => row.method },
      ...found.columns.map(({ key, title, best, job }) => ({ title, best, value: (row) => row[key], show: (row) => {
        const words = row[key] == null ? '–' : (SHOWN[key] ?? number)(row[key]);
        return job && row[key] != null ? h('a', { href: `/runs?run=${row.jobs[key]}` }, words) : words;
      } })),
    ];
    this.table = new RankedTable(columns, { order: this.table?.order ?? 'Held-out loss' });
    this.table.draw(found.rows);
    this.element.replaceChildren(h('header', {}, h('h2', {}, 'Results'), h('span', { class: 's-actions' },
      ['csv', 'markdown'].map((form) => button(form === 'csv' ? 'CSV' : 'Markdown', () => save(form))))),
    this.table.element, quiet('The best of each column is bold. Evaluations, suites and votes add columns; a number '
      + 'opens the job that measured it.'));
  }
}

/** Download the table as a file. */
async function save(form) {
  const found = await send('/api/do/results', { form });
  if (!found) return;
  const url = URL.createObjectURL(new Blob([found.text], { type: 'text/plain' }));
  h('a', { href: url, download: `results.${form === 'csv' ? 'csv' : 'md'}` }).click();
  URL.revokeObjectURL(url);
}
