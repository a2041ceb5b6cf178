// The queue: hold or release it, policy after an error, notifications, and the dialogs that plan a run
// (schedule, sweep, train longer, note and tags, webhook).

import { api, button, dots, go, h, send, t, text, toast } from '../core/dom.js';
import { askAction, list, select } from '../core/form.js';
import { poke, toggleNotifications, wantsNotifications } from '../core/live.js';
import { Setting } from '../train/settings.js';

export class QueueBar {
  constructor() {
    this.holding = button(t`Hold all`, () => this.change({ [this.queue?.held ? 'release' : 'hold']: true }),
      's-tool', { testid: 'hold-queue' });
    this.onError = select([['continue', t`Errors: continue`], ['stop', t`Errors: stop`]], 'continue',
      (policy) => this.change({ on_error: policy }), { label: t`After an error` });
    this.notifying = button('', async () => {
      const refused = await toggleNotifications();
      if (refused) toast(refused, 'error');
      this.show(this.queue, true, !this.keys.hidden);
    }, 's-tool', { title: t`A desktop notification when a run ends` });
    this.keys = h('p.s-keys', { testid: 'queue-keys' },
      h('kbd', 'Alt ↑'), ' ', h('kbd', 'Alt ↓'), t` move a run, `, h('kbd', 'Alt Home'),
      t` puts it first.`);
    this.element = h('div.s-queue-bar', { hidden: true }, this.holding, this.onError, this.notifying,
      button(t`Webhook`, planWebhook, 's-tool'), this.keys);
  }

  /** `shown`: the list is the queue; `many`: there is an order to change. */
  show(queue, shown, many) {
    this.queue = queue;
    this.element.hidden = !shown;
    this.keys.hidden = !many;
    text(this.holding, queue?.held ? t`Release all` : t`Hold all`);
    text(this.notifying, wantsNotifications() ? t`Notify: on` : t`Notify: off`);
    if (document.activeElement !== this.onError) this.onError.value = queue?.on_error ?? 'continue';
  }

  async change(values) {
    await send('/api/do/queue', values);
    poke();
  }
}

export function planSchedule(job, jobs) {
  const older = jobs.filter((one) => one.id < job.id && one.state !== 'failed' && one.state !== 'cancelled')
    .slice(0, 60).map(({ id }) => id);
  const shown = job.start_after > Date.now() / 1000 + 60 ? localTime(job.start_after) : '';
  const choice = (id) => [String(id), dots(id, jobs.find((one) => one.id === id)?.name)];
  return askAction('schedule', { fixed: { job: job.id }, only: ['at', 'when', 'needs', 'retries'],
    choices: { needs: [...new Set([...job.needs, ...older])].map(choice) },
    sent: ({ at, ...values }) => ({ ...values, ...(at !== shown && { at: instant(at) }) }),
    values: { at: shown, when: job.start_when || 'any', needs: job.needs, retries: job.retries_left ?? 0 } });
}

/** A day, a time of it or both, in the time zone of the browser, as the server reads it in any; other words as is.
 *  `days` are added to a day without a time. */
export function instant(words, now = Date.now(), days = 0) {
  const [, day, time] = /^(\d{4}-\d\d-\d\d)?[ T]*(\d{1,2}:\d\d)?$/.exec(words) ?? [];
  if (!day && !time) return words;
  const at = new Date(`${day ?? localTime(now / 1000).slice(0, 10)}T${(time ?? '00:00').padStart(5, '0')}`);
  if (Number.isNaN(at.getTime()) || (day && localTime(at / 1000).slice(0, 10) !== day)) return words; // 02-31
  if (!day && at <= now) at.setDate(at.getDate() + 1);
  if (!time) at.setDate(at.getDate() + days);
  return at.toISOString();
}

/** 2026-11-25 02:53, in the local time zone. */
export function localTime(time) {
  const date = new Date(time * 1000);
  return new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, 16).replace('T', ' ');
}

/** Ask for more steps or epochs, as the run counts. */
export const planLonger = ({ id: job, max_steps: steps }) => askAction('extend', {
  ...(steps > 0 ? { fixed: { job, epochs: 0 }, values: { steps } } : { fixed: { job }, values: { epochs: 1 } }),
  note: steps > 0 ? t`A new run goes on from its last checkpoint.`
    : t`A new run goes on from its last checkpoint. Epochs count while Steps is 0; else the steps do.`,
  done: ({ id }) => go(`/runs?run=${id}`) });

export const NEXT_STAGE = t`Train on with another dataset or loss …`;

/** A next stage that starts from the adapter of a run, with the dataset picker of the Train page. */
export async function planNext(job) {
  const { fields, choices } = await api('/api/train/form', {});
  const data = new Setting(fields.find(({ name }) => name === 'data.path'), choices['data.path']);
  data.fill(job.data);
  return askAction('then', { fixed: { job: job.id }, nodes: { data }, title: t`Train on from ${job.name}`,
    done: ({ id }) => go(`/runs?run=${id}`) });
}

export const planNote = (job) => askAction('note', { fixed: { job: job.id }, only: ['text', 'tags'],
  title: t`Note on ${job.name}`, values: { text: job.notes, tags: job.tags } });

async function planWebhook() {
  const now = await api('/api/do/webhook', {});
  return askAction('webhook', { note: now.webhook && t`Now ${now.webhook}.` });
}

const SWEPT = [t`Learning rate`, t`Rank`, t`Alpha`, t`Dropout`, t`Method`, t`Epochs`, t`Steps`, t`Warmup steps`,
  t`Batch size`, t`Weight decay`, t`Dataset`, t`Maximum length`, t`Model`, t`Seed`];

/** The number of runs that the lines of a sweep make, as in `Rank = 4, 8`. */
export const combinations = (lines) => lines.reduce((n, line) =>
  n * list(line.slice(line.indexOf('=') + 1)).length, lines.length ? 1 : 0);

/** A sweep from a run, or from the form: its address assignments in `set`. */
export async function planSweep(job, set = []) {
  const node = await askAction('sweep', { fixed: job ? { like: job.id } : { set },
    only: ['name', 'over', 'random', 'on_error'], title: job ? t`Queue a sweep from ${job.name}`
      : t`Queue a sweep from this form`, done: ({ jobs }) => {
      go(`/runs?run=${jobs.map(({ id }) => id).slice(0, 10).join()}`);
      return t`${jobs.length} runs are queued.`;
    } });
  const [lines, draw] = ['over', 'random'].map((name) => node.querySelector(`[name=${name}]`));
  lines.placeholder = 'Rank = 4, 8, 16\nSeed = 0, 1';
  const total = h('small.s-quiet', t`One line per setting: setting = value, value, …`);
  lines.after(total, h('div.s-chips', SWEPT.map((field) => button(field, () => {
    lines.value = `${lines.value.trimEnd()}\n${field} = `.trimStart();
    lines.focus();
  }, 's-tool'))));
  node.addEventListener('input', () => {
    const all = combinations(list(lines.value, '\n')), some = Math.min(all, Number(draw.value) || all);
    text(total, all ? t`${some} run${some > 1 ? 's' : ''}` : t`No values yet`);
  });
}
