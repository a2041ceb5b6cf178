// Parts of a run: what its curves say, each finding with the one button that mends it; its tabs (log, samples,
// checkpoints, config, history); and, after running out of memory, the changes that make it fit. Everything a
// run wrote is shown as text.

import { ago, api, badge, button, changed, clock, count, duration, go, h, number, quiet, redraw, send, snippet, t,
  table, text, word } from '../core/dom.js';
import { dialog } from '../core/form.js';
import { checkpointActions, compareCheckpoint } from '../core/lanes.js';
import { isLive, poke } from '../core/live.js';

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

// -- tabs --

/** By the view's name: `(content, job) => node or nodes`. */
export const views = {
  log: (lines) => (lines ? h('pre', lines) : quiet(t`The log is empty until the run starts.`)),

  samples(rows) {
    if (!rows.length) return quiet(
      t`Answers to fixed prompts appear here, before the first step and at each evaluation.`);
    return [...Map.groupBy(rows, (row) => row.prompt)].map(([prompt, shots]) => h('section.s-film',
      h('h3', prompt),
      h('ol', { tabindex: '0', label: prompt }, shots.map((shot, i) => {
        const same = i > 0 && shot.text === shots[i - 1].text;
        return h('li.s-sample', { 'data-same': same },
          h('header', shot.step ? t`Step ${count(shot.step)}` : t`Before training`, same && t` · the same`),
          h('p', shot.text || '–'));
      }))));
  },

  checkpoints(rows, job) {
    if (!rows.length) return quiet(t`No checkpoint yet. One is saved regularly, and whenever you pause.`);
    return table([t`Step`, t`Held-out loss`, t`Saved`, '', t`Folder`], [...rows].reverse().map((row) => [
      count(row.step), number(row.eval_loss), ago(row.time),
      !job.trains_base && checkpointActions(job, row.step),
      h('td.s-path', row.path)]));
  },

  config: ({ yaml, command, error }) => [error && h('p.s-warning', error),
    command && snippet(t`Command line`, command), snippet('spec.yaml', yaml)].filter(Boolean),

  history: ({ events }) => table([t`Time`, t`State`, t`By`, t`Why`], [...events].reverse().map((row) =>
    [clock(row.time, true), badge(row.dst), word(row.actor), row.why])),
};

/** The changes that make a run fit its device, a button each. Each queues the run again with that one
 *  change; the failed run stays as it is. */
export function remedies(job) {
  const intro = quiet();
  const list = h('ul.s-remedies', { label: t`Ways to make it fit` });
  api('/api/do/refit', { job, listing: true }).then((found) => {
    text(intro, found.length ? t`Train it again with one of these changes:`
      : t`No setting makes it small enough: choose a smaller model, or a device with more memory.`);
    redraw(list, ...found.map((one, i) => remedy(job, one, i === 0 && one.same_result)));
  }, (error) => text(intro, error.message));
  return [intro, list];
}

function remedy(job, { name, title, about, lacks, same_result: same }, best) {
  const status = h('span', { 'data-same': String(same), role: 'status' },
    lacks || (same ? t`Same result.` : t`The result changes.`));
  const again = async () => {
    const queued = await send('/api/do/refit', { job, remedy: name }, ({ id }) => t`Queued again as run ${id}.`);
    if (queued) text(status, t`Queued as run ${queued.id}.`);
    poke();
  };
  return h('li', button(title, again, best ? 's-primary' : '',
    { 'aria-describedby': `remedy-${name}`, 'data-remedy': name, disabled: Boolean(lacks) }),
  h('p', { id: `remedy-${name}` }, about, ' ', status));
}
