// The bake-off: the same data, budget and seed over several methods, queued as siblings, and the table
// of their results. Started from Train (with its form) or from Adapters.

import { api, button, bytes, compact, go, h, number, quiet, remember, table, toast } from '../core/dom.js';
import { ask } from '../core/form.js';
import { isLive } from '../core/live.js';

const USUAL = ['lora', 'bottleneck', 'prefix_tuning', 'ia3', 'bitfit', 'norm_tuning'];

/** `assignments`: the Train form's, as in its address; without them the dialog asks for base and data. */
export async function askBakeoff({ methods, models, assignments = null }) {
  if (!methods) ({ methods, models } = await api('/api/adapters'));
  const boxes = methods.map((one) => h('input', { type: 'checkbox', class: 's-box', value: one.name,
    checked: USUAL.includes(one.name) }));
  const ticks = { element: h('div', { class: 's-ticks', role: 'group', 'aria-label': 'Methods' },
    boxes.map((box, i) => h('label', { class: 's-check' }, box, methods[i].title))),
  value: () => boxes.filter((box) => box.checked).map((box) => box.value) };
  const own = assignments ? [] : [
    { name: 'model', title: 'Base', choices: (models ?? []).map((one) => [one.path, one.label]) },
    { name: 'data', title: 'Dataset', default: 'starter:pirate' },
    { name: 'steps', title: 'Steps', type: 'integer', default: 60, ge: 1 }];
  const now = new Date().toISOString().slice(5, 16).replace('T', ' ').replace(':', '.');
  ask({ title: 'Method bake-off', label: 'Queue', help: 'Trains each method on the same data with the same budget and '
    + 'seed, one after the other, then measures them side by side.'
    + (assignments ? ' Base, data and training settings are those of the form.' : ''), fields: [...own,
    { name: 'methods' },
    { name: 'prompts', title: 'Prompts that every adapter answers', type: 'lines', rows: 2,
      placeholder: 'One per line; a few default ones when empty' },
    { name: 'name', title: 'Name', default: `bake-off ${now}`, required: true, max_length: 120 }] },
  async ({ methods: chosen, prompts, name, model, data, steps }) => {
    if (!chosen.length) throw new Error('Choose at least one method.');
    const done = await api('/api/bakeoffs', { name, methods: chosen, prompts: prompts.split('\n'),
      assignments: assignments ?? [`model.path=${model}`, `data.path=${data}`, `train.max_steps=${steps}`] });
    go(`/adapters?bakeoff=${encodeURIComponent(done.name)}`);
  }, { nodes: { methods: ticks } });
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
    try {
      this.draw((await api(`/api/bakeoffs/table?name=${encodeURIComponent(name)}`)).rows);
    } catch (error) {
      this.hide();
      toast(error.message, 'error');
    }
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
