// What the curves of a run say, under its figures: each finding with the one button that mends it.

import { api, button, changed, count, duration, go, h, quiet, redraw, t } from '../core/dom.js';
import { dialog } from '../core/form.js';
import { compareCheckpoint } from '../core/lanes.js';
import { isLive } from '../core/live.js';

const FEW_ROWS = 8;
const READ_PARTS = 10; // times that a running run is read

/** The state of a run after which it is read again. */
export const readAt = ({ id, state, step, total_steps: total, eval_loss: held, forgetting }) =>
  [id, state, total && isLive({ state }) ? Math.floor((READ_PARTS * step) / total) : '', held, forgetting].join();

export const asked = ({ action, values }) => (action === 'duplicate'
  ? { set: Object.entries(values).map(([name, value]) => `${name}=${value}`) } : values);

export const queuedWords = ({ steps, seconds }) => t`A run of ${count(steps)} steps is queued.`
  + (seconds ? t` It takes about ${duration(seconds)} at the pace of this one.` : '');

export const calmWords = (held) => t`The curves show none of the known faults. They do not show whether the
  answers are good.`
  + (held > 0 && held < FEW_ROWS ? t` The held-out loss rests on ${held} rows only: ask it questions of your own.`
    : '');

export class Reading {
  constructor() {
    this.element = h('ul.s-reading', { label: t`What the curves say`, testid: 'reading' });
    this.show(null, []);
  }

  /** Show the findings of a run; a `calm` one has none, and that is said. */
  show(job, findings, calm = false) {
    this.element.hidden = !findings.length && !calm;
    if (changed(this.element, JSON.stringify([job?.id, findings, calm]))) {
      redraw(this.element, ...findings.map((one) => item(job, one)), calm && !findings.length
        ? h('li', { 'data-rule': 'calm' }, calmWords(job.rows?.held_out)) : '');
    }
  }
}

function item(job, { rule, title, text, remedy, queues }) {
  return h('li', { 'data-rule': rule }, h('div', h('strong', title), quiet(text)), remedy
    && (remedy.action === 'compare'
      ? h('a.s-button', { href: compareCheckpoint(job, remedy.values.step) }, remedy.title)
      : button(`${remedy.title} …`, () => dialog(remedy.title, quiet(queues ? queuedWords(queues) : text), t`Queue it`,
        async () => {
          const made = await api(`/api/do/${remedy.action}`, { job: job.id, ...asked(remedy) });
          go(`/runs?run=${made.id}`);
        }))));
}
