// The bake-off: the same data, budget and seed over several methods, queued as siblings, and the table
// of their results. Started from Train (with its form) or from Adapters.

import { api, button, bytes, compact, h, number, remember, toast } from '../core/dom.js';
import { choice, dialog, labelled } from '../core/form.js';
import { isLive } from '../core/live.js';

const USUAL = ['lora', 'bottleneck', 'prefix_tuning', 'ia3', 'bitfit', 'norm_tuning'];

/** `assignments`: what the Train form says, as in its address; null lets the dialog ask. */
export async function askBakeoff({ methods, models, assignments = null }) {
  if (!methods) ({ methods, models } = await api('/api/adapters'));
  const boxes = methods.map(({ name, title }) => {
    const box = h('input', { type: 'checkbox', class: 's-box', value: name });
    box.checked = USUAL.includes(name);
    return h('label', { class: 's-method-tick' }, box, title);
  });
  const name = h('input', { type: 'text', required: true, maxlength: 120 });
  name.value = `bake-off ${new Date().toISOString().slice(5, 16).replace('T', ' ').replace(':', '.')}`;
  const model = choice((models ?? []).map((one) => [one.path, one.label]));
  const data = h('input', { type: 'text' });
  data.value = 'starter:pirate';
  const steps = h('input', { type: 'number', min: 1, step: 1 });
  steps.value = 60;
  const prompts = h('textarea', { rows: 2, placeholder: 'One a line; a few usual ones when empty' });
  const form = assignments ? h('p', { class: 's-quiet' }, 'Model, data and training as the form says; '
    + 'only the method changes.') : h('div', { class: 's-fields-row' }, labelled('Base', model),
    labelled('Dataset', data), labelled('Steps', steps));
  dialog('Method bake-off', [h('p', { class: 's-quiet' }, 'Trains each method on the same data with the same '
    + 'budget and seed, one after the other, then measures them beside each other.'), form,
  h('div', { class: 's-ticks', role: 'group', 'aria-label': 'Methods' }, boxes),
  labelled('Prompts that every adapter answers', prompts), labelled('Name', name)], 'Queue them', async () => {
    const chosen = boxes.map((one) => one.firstChild).filter((box) => box.checked).map((box) => box.value);
    if (!chosen.length) throw new Error('Choose at least one method.');
    const asked = assignments ?? [`model.path=${model.value}`, `data.path=${data.value}`,
      `train.max_steps=${steps.value || 60}`];
    const done = await api('/api/bakeoffs', { name: name.value, methods: chosen, assignments: asked,
      prompts: prompts.value.split('\n') });
    location.href = `/adapters?bakeoff=${encodeURIComponent(done.name)}`;
  });
}

const times = (value) => (value == null ? '–' : `×\u202f${number(value, 3)}`);

/** The result table of one bake-off; it fills as its runs end. */
export class Results {
  constructor() {
    this.element = h('section', { class: 's-results', hidden: true, 'data-testid': 'bakeoff' });
  }

  async show(name) {
    this.name = name;
    try {
      const { rows } = await api(`/api/bakeoffs/table?name=${encodeURIComponent(name)}`);
      this.draw(rows);
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

  /** Called with the queue: ask again when one of its jobs moved. */
  take(jobs) {
    if (!this.name) return;
    const moved = jobs.filter((job) => job.sweep === this.name)
      .map((job) => `${job.id} ${job.state} ${isLive(job) ? '' : job.eval_loss}`).join();
    if (moved === this.moved) return;
    this.moved = moved;
    this.show(this.name);
  }

  draw(rows) {
    const columns = ['Method', 'Trainable', 'Peak memory', 's / step', 'First', 'Last', 'Held-out', 'On disk',
      'Live', 'Merged'];
    const best = Math.min(...rows.map((row) => row.eval_loss ?? Infinity));
    const done = rows.filter((row) => row.state === 'succeeded').length;
    const head = h('header', {}, h('h2', {}, this.name),
      h('span', { class: 's-quiet' }, done < rows.length ? `${done} of ${rows.length} trained` : ''),
      h('span', { class: 's-actions' }, h('a', { class: 's-button',
        href: `/runs?run=${rows.map((row) => row.run).join()}` }, 'Overlay the curves'),
      button('Close', () => this.hide(), '')));
    this.element.hidden = false;
    this.element.replaceChildren(head, h('table', { class: 's-table s-numbers' },
      h('thead', {}, h('tr', {}, columns.map((name) => h('th', { scope: 'col' }, name)))),
      h('tbody', {}, rows.map((row) => this.row(row, best, columns.length)))), h('p', { class: 's-quiet' },
      'Live and merged: time per generated token against the bare base. "–" is not measured yet, or '
      + 'cannot be merged.'), this.answers(rows));
  }

  row(row, best, width) {
    const name = h('td', {}, h('a', { href: `/runs?run=${row.run}` }, row.method));
    if (row.state !== 'succeeded') {
      return h('tr', {}, name, h('td', { colspan: width - 1, class: row.error ? 's-error' : 's-quiet' },
        row.error || row.state));
    }
    return h('tr', {}, name, ...[compact(row.trainable_parameters),
      bytes(row.peak_memory_bytes), number(row.seconds_per_step, 3), number(row.first_loss),
      number(row.last_loss)].map((value) => h('td', {}, value)),
    h('td', {}, row.eval_loss === best ? h('b', {}, number(row.eval_loss)) : number(row.eval_loss)),
    ...[bytes(row.size_bytes), times(row.live_ratio), times(row.merged_ratio)].map((value) =>
      h('td', {}, value)));
  }

  answers(rows) {
    const spoken = rows.filter((row) => row.answers.length);
    if (!spoken.length) return '';
    return h('details', { class: 's-bin' }, h('summary', {}, 'Sample answers'),
      h('div', { class: 's-sampled' }, spoken.map((row) => h('article', {}, h('h3', {}, row.method),
        row.answers.map((answer) => h('p', {}, answer))))));
  }
}
