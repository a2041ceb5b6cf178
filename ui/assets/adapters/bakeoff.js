// The bake-off: the same data, budget and seed over several methods, queued as siblings, and the table
// of their results. Started from Train (with its form) or from Adapters.

import { api, button, bytes, compact, go, h, number, quiet, remember, send, table } from '../core/dom.js';
import { askAction } from '../core/form.js';
import { isLive } from '../core/live.js';

/** `set`: the assignments of the Train form; without them the dialog asks for base, data and settings. */
export async function askBakeoff({ models, set = null }) {
  const methods = await api('/api/do/methods', {});
  const now = new Date().toISOString().slice(5, 16).replace('T', ' ').replace(':', '.');
  askAction('bakeoff', { known: { methods, models },
    fixed: set ? { set } : {}, only: [...(set ? [] : ['model', 'data', 'set']), 'methods', 'prompt', 'name'],
    values: { name: `bake-off ${now}`, set: ['train.max_steps=60'],
      methods: methods.filter((one) => one.capabilities.stackable).map((one) => one.name).join() },
    done: ({ name }) => go(`/adapters?bakeoff=${encodeURIComponent(name)}`) });
}

const times = (value) => (value == null ? '–' : `×\u202f${number(value, 3)}`);
const COLUMNS = ['Method', 'Trainable', 'Peak memory', 's / step', 'First', 'Last', 'Held-out', 'On disk', 'Live',
  'Merged'];

/** The result table of one bake-off; it fills as its runs end. */
export class Results {
  constructor() {
    this.element = h('section', { class: 's-results', hidden: true, 'data-testid': 'bakeoff' });
  }

  async show(name) {
    this.name = name;
    const found = await send('/api/do/bakeoff', { show: name });
    if (found) this.draw(found.rows); else this.hide();
  }

  hide() {
    this.name = null;
    this.element.hidden = true;
    remember({ bakeoff: null });
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

  draw(rows) {
    const best = Math.min(...rows.map((row) => row.eval_loss ?? Infinity));
    const done = rows.filter((row) => row.state === 'succeeded').length;
    const spoken = rows.filter((row) => row.answers.length);
    this.element.hidden = false;
    this.element.replaceChildren(h('header', {}, h('h2', {}, this.name),
      h('span', { class: 's-quiet' }, done < rows.length ? `${done} of ${rows.length} trained` : ''),
      h('span', { class: 's-actions' }, h('a', { class: 's-button',
        href: `/runs?run=${rows.map((row) => row.run).join()}` },
        'Overlay the curves'), button('Close', () => this.hide()))),
    table(COLUMNS, rows.map((row) => cells(row, best)), { class: 's-table s-numbers' }),
    quiet('Live and merged: time per generated token relative to the base alone; “–” is not measured yet, or cannot '
      + 'be merged.'),
    spoken.length ? h('details', { class: 's-bin' }, h('summary', {}, 'Sample answers'),
      h('div', { class: 's-sampled' }, spoken.map((row) => h('article', {}, h('h3', {}, row.method),
        row.answers.map((answer) => h('p', {}, answer)))))) : '');
  }
}

function cells(row, best) {
  const name = h('a', { href: `/runs?run=${row.run}` }, row.method);
  if (row.state !== 'succeeded') {
    return [name, h('td', { colspan: COLUMNS.length - 1, class: row.error ? 's-error' : 's-quiet' },
      row.error || row.state)];
  }
  const held = number(row.eval_loss);
  return [name, compact(row.trainable_parameters), bytes(row.peak_memory_bytes), number(row.seconds_per_step, 3),
    number(row.first_loss), number(row.last_loss), row.eval_loss === best ? h('b', {}, held) : held,
    bytes(row.size_bytes), times(row.live_ratio), times(row.merged_ratio)];
}
