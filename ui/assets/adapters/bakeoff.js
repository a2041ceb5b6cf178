// The bake-off: the same data, budget and seed over several methods, queued as siblings, and the table
// of their results. Started from Train (with its form) or from Adapters.

import { api, button, bytes, compact, duration, go, h, number, redraw, remember, send, t } from '../core/dom.js';
import { askAction } from '../core/form.js';
import { isLive } from '../core/live.js';
import { RankedTable, scatter } from '../core/ranked.js';
import { takeTable } from '../core/take_away.js';
import { localTime } from '../runs/queue.js';

/** `set`: the assignments of the Train form; without them the dialog asks for base, data and settings. */
export async function askBakeoff({ models, set = null, impossible = [] }) {
  const all = await api('/api/do/methods', {});
  const methods = all.filter((one) => !impossible.includes(one.name));
  const now = localTime(Date.now() / 1000).slice(5).replace(':', '.');
  askAction('bakeoff', { known: { methods, models },
    fixed: set ? { set } : {},
    only: [...(set ? [] : ['model', 'data', 'set']), 'methods', 'best_rates', 'seeds', 'prompt', 'name'],
    values: { name: `bake-off ${now}`, set: ['train.max_steps=60'],
      methods: methods.filter((one) => one.capabilities.stackable).map((one) => one.name).join() },
    done: ({ name }) => go(`/adapters?bakeoff=${encodeURIComponent(name)}`) });
}

const times = (value) => (value == null ? '–' : `×\u202f${number(value, 3)}`);
const figure = (title, key, show, best = 'min', hint = '') => ({ title, hint, best, value: (row) => row[key],
  spread: (row) => row[`${key}_interval`],
  show: (row) => show(row[key]) + (row[`${key}_interval`] ? ` ±\u202f${number(row[`${key}_interval`], 2)}` : '') });
const COLUMNS = [
  { title: t`Method`, value: (row) => row.title,
    show: ({ title, runs, seeds }) => h('a', { href: `/runs?run=${runs.join()}` }, title,
      seeds < runs.length && ` (${t`${seeds} of ${runs.length}`})`) },
  figure(t`Held-out`, 'eval_loss', number, 'min', t`Loss on rows held out`),
  figure(t`Forgetting`, 'forgetting', (value) => number(value, 3), 'min',
    t`KL divergence from the base, per token of its own answers to neutral prompts`),
  { ...figure(t`Changed`, 'changed', String, 'min', t`Answers to neutral prompts that changed`),
    show: (row) => (row.changed == null ? '–' : t`${row.changed} of ${row.neutral_prompts}`) },
  figure(t`Parameters`, 'trainable_parameters', compact), figure(t`On disk`, 'size_bytes', bytes),
  figure(t`Memory`, 'memory_bytes', bytes, 'min', t`Training memory above the base, measured alone`),
  figure(t`s / step`, 'seconds_per_step', (value) => number(value, 3), 'min', t`Of a few steps, measured alone`),
  { ...figure(t`To equal loss`, 'seconds_to_loss', duration, 'min', t`Time to the lowest held-out loss that every
    method reached`), show: (row) => (row.seconds_to_loss == null ? '–' : h('span', { title:
    t`to ${number(row.target_loss)}` }, duration(row.seconds_to_loss))) },
  figure(t`Learning rate`, 'learning_rate', (value) => number(value, 3), null),
  figure(t`Last loss`, 'last_loss', number),
  figure(t`Live`, 'live_ratio', times, 'min', t`Time per generated token relative to the base alone`),
  figure(t`Merged`, 'merged_ratio', times, 'min', t`The same after merging; – cannot be merged`),
];

/** The result table of one bake-off; it fills as its runs end. `closed` is called by its Close button. */
export class Results {
  constructor(closed = null) {
    this.closed = closed;
    this.table = new RankedTable(COLUMNS, { order: t`Held-out`, rest: (row) => row.state !== 'succeeded'
      && h('span', { class: row.error ? 's-error' : 's-quiet' }, row.error || row.state) });
    this.element = h('section.s-results', { hidden: true, testid: 'bakeoff' });
  }

  async show(name) {
    this.name = name;
    const found = await send('/api/do/bakeoff', { show: name });
    if (this.name !== name) return;
    if (found) this.draw(found.rows, found.prompts); else this.hide();
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

  draw(rows, prompts) {
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
        t`Overlay the curves`), takeTable(t`Bake-off ${this.name}`, this.table),
      this.closed && button(t`Close`, () => this.closed()))),
    this.table.element, scatter(points, { x: t`Held-out loss (learned)`, y: t`KL from the base (forgot)` }),
    asked.length ? h('details.s-bin', h('summary', t`Sample answers`), asked.map((prompt, place) => [
      h('h3', prompt), h('div.s-sampled', rows.filter((row) => row.answers.length > place).map((row) =>
        h('article', h('h4', row.title), h('p', row.answers[place]))))])) : '');
  }
}
