// What the curves of a run say, under its figures: each finding with the one button that mends it.

import { actOn, button, changed, h, quiet, redraw, t } from '../core/dom.js';
import { compareCheckpoint } from '../core/lanes.js';
import { isLive, poke } from '../core/live.js';

const READ_PARTS = 10; // times that a running run is read

/** The state of a run after which it is read again. */
export const readAt = ({ id, state, step, total_steps: total, eval_loss: held, forgetting }) =>
  [id, state, total && isLive({ state }) ? Math.floor((READ_PARTS * step) / total) : '', held, forgetting].join();

export const asked = ({ action, values }) => (action === 'duplicate'
  ? { set: Object.entries(values).map(([name, value]) => `${name}=${value}`) } : values);

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
        ? h('li', { 'data-rule': 'calm' }, t`Nothing to mend: these curves show none of the known faults.`) : '');
    }
  }
}

function item(job, { rule, title, text, remedy }) {
  return h('li', { 'data-rule': rule }, h('div', h('strong', title), quiet(text)),
    remedy.action === 'compare'
      ? h('a.s-button', { href: compareCheckpoint(job, remedy.values.step) }, remedy.title)
      : button(remedy.title, async () => {
        await actOn(job.id, remedy.action, asked(remedy), (made) => t`Queued as “${made.name}”.`);
        poke();
      }));
}
