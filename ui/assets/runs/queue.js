// The queue: hold or release it, policy after an error, notifications, and the dialogs that plan a run
// (schedule, sweep, train longer, note and tags, webhook).

import { api, button, h, send, text, toast } from '../core/dom.js';
import { ask, list } from '../core/form.js';
import { poke, toggleNotifications, wantsNotifications } from '../core/live.js';

export class QueueBar {
  constructor() {
    this.holding = button('Hold all', () => this.change({ [this.queue?.held ? 'release' : 'hold']: true }),
      's-tool', { 'data-testid': 'hold-queue' });
    this.onError = h('select', { 'aria-label': 'After an error', onchange: (e) =>
      this.change({ on_error: e.target.value }) }, h('option', { value: 'continue' }, 'Errors: continue'),
    h('option', { value: 'stop' }, 'Errors: stop'));
    this.notifying = button('', async () => {
      const refused = await toggleNotifications();
      if (refused) toast(refused, 'error');
      this.show(this.queue, true, !this.keys.hidden);
    }, 's-tool', { title: 'A desktop notification when a run ends' });
    this.keys = h('p', { class: 's-keys', 'data-testid': 'queue-keys' },
      h('kbd', {}, 'Alt ↑'), ' ', h('kbd', {}, 'Alt ↓'), ' move a run, ', h('kbd', {}, 'Alt Home'),
      ' puts it first.');
    this.element = h('div', { class: 's-queue-bar', hidden: true }, this.holding, this.onError, this.notifying,
      button('Webhook', planWebhook, 's-tool'), this.keys);
  }

  /** `shown`: the list is the queue; `many`: there is an order to change. */
  show(queue, shown, many) {
    this.queue = queue;
    this.element.hidden = !shown;
    this.keys.hidden = !many;
    text(this.holding, queue?.held ? 'Release all' : 'Hold all');
    text(this.notifying, wantsNotifications() ? 'Notify: on' : 'Notify: off');
    if (document.activeElement !== this.onError) this.onError.value = queue?.on_error ?? 'continue';
  }

  async change(values) {
    await send('/api/do/queue', values);
    poke();
  }
}

export function planSchedule(job, jobs) {
  const older = jobs.filter((one) => one.id < job.id && one.state !== 'failed' && one.state !== 'cancelled').slice(0,
    60);
  ask({ title: 'When it starts', label: 'Plan', fields: [
    { name: 'at', title: 'Not before', placeholder: '02:30, +2h or 2027-01-31 02:30',
      help: 'Empty: as soon as its turn comes' },
    { name: 'when', title: 'Only', choices: [['', 'At any time'], ['idle', 'Only when the machine is idle'],
      ['night', 'Only at night (22 to 7)']] },
    { name: 'needs', title: 'After these succeeded', type: 'list', help: 'Ctrl-click selects several, or none',
      choices: older.map((one) => [String(one.id), `${one.id} · ${one.name}`]) },
    { name: 'retries', title: 'Retries', type: 'integer', ge: 0, le: 10, default: 0,
      help: 'Retry up to this often after a transient failure, such as too little memory' }] },
  ({ at, when, needs, retries }) => api('/api/do/schedule', { job: job.id, at, when, needs: needs.map(Number),
    retries: retries === job.retries_left ? null : retries }),
  { values: { at: job.start_after > Date.now() / 1000 + 60 ? local(job.start_after) : '', when: job.start_when,
    needs: job.needs.map(String), retries: job.retries_left ?? 0 } });
}

const local = (time) => {
  const date = new Date(time * 1000 - new Date().getTimezoneOffset() * 60000);
  return date.toISOString().slice(0, 16).replace('T', ' ');
};

const SWEPT = ['method.r', 'method.lora_alpha', 'method.lora_dropout', 'method.name', 'train.learning_rate',
  'train.num_train_epochs', 'train.max_steps', 'train.warmup_steps', 'train.per_device_train_batch_size',
  'train.weight_decay', 'data.path', 'data.max_length', 'model.path', 'seed'];

/** The assignments of a sweep's text, one per line; and how many runs they make. */
export const assignments = (words) => words.split('\n').map((line) => line.trim().replace(/\s*=\s*/, '='))
  .filter(Boolean);
export const combinations = (lines) => lines.reduce((n, line) =>
  n * list(line.slice(line.indexOf('=') + 1)).length, lines.length ? 1 : 0);

/** A sweep from a run, or from the form: its address assignments in `set`. */
export function planSweep(job, set = []) {
  const lines = h('textarea', { rows: '4', spellcheck: 'false', 'aria-label': 'Values', oninput: () => count(),
    placeholder: 'method.r = 4, 8, 16\nseed = 0, 1' });
  const known = h('div', { class: 's-chips' }, SWEPT.map((field) => button(field, () => {
    lines.value = `${lines.value.trimEnd()}\n${field} = `.trimStart();
    lines.focus();
  }, 's-tool')));
  const total = h('small', { class: 's-quiet' }, 'One line per field: field = value, value, …');
  const over = { element: h('label', { class: 's-labelled' }, h('span', {}, 'Values to try'),
    h('div', { class: 's-stack' }, lines, total, known)), value: () => assignments(lines.value) };
  const count = () => {
    const all = combinations(over.value()), some = Math.min(all, Number(draw.value) || all);
    text(total, all ? `${some} run${some > 1 ? 's' : ''}` : 'No values yet');
  };
  const node = ask({ title: job ? `Sweep from ${job.name}` : 'Sweep from this form', label: 'Queue the sweep', fields: [
    { name: 'name', title: 'Name', placeholder: 'ranks', required: true },
    { name: 'over' },
    { name: 'random', title: 'Draw at random', type: 'integer', default: 0, ge: 0, le: 1000,
      help: '0 tries every combination', more: { oninput: () => count() } },
    { name: 'on_error', title: 'After an error', choices: [['continue', 'Continue with the others'], ['stop',
      'Hold the rest']] }] },
  async (values) => {
    const { jobs } = await api('/api/do/sweep', { ...(job ? { like: job.id } : { set }), ...values });
    toast(`${jobs.length} runs are queued.`);
  }, { nodes: { over } });
  const draw = node.querySelector('input[type=number]');
}

export function planLonger(job) {
  ask({ title: `Train ${job.name} longer`, label: 'Queue', help: 'A new run that starts from the newest checkpoint.',
    fields: [{ name: 'more', title: 'How much more', type: 'number', ge: 0, required: true },
      { name: 'unit', title: 'Unit', choices: ['epochs', 'steps'] },
      { name: 'name', title: 'Name', placeholder: 'generated when empty', max_length: 120 }] },
  async ({ more, unit, name }) => {
    const made = await api('/api/do/extend', { job: job.id, [unit]: more, name });
    toast(`${made.name} is queued, from step ${made.step}.`);
  }, { values: { more: 1 } });
}

export function planNote(job) {
  ask({ title: `Note on ${job.name}`, label: 'Keep', fields: [
    { name: 'tags', title: 'Tags', placeholder: 'baseline, keep', help: 'Separated by commas; the search finds them' },
    { name: 'notes', title: 'Note', type: 'lines', rows: 5, max_length: 10000 }] },
  ({ tags, notes }) => api('/api/do/note', { job: job.id, text: notes, tags: list(tags) }),
  { values: { tags: job.tags.join(', '), notes: job.notes } });
}

async function planWebhook() {
  const now = await send('/api/queue');
  if (!now) return;
  ask({ title: 'Webhook when a run ends', label: 'Keep', fields: [{ name: 'webhook', title: 'Webhook',
    placeholder: now.webhook ?? 'An http or https address', more: { type: 'url' }, help: now.webhook
      ? `Now ${now.webhook}. Empty removes it.`
      : 'One POST of JSON at the end of each run. The address is stored where only you can read it.' }] },
  ({ webhook }) => api('/api/do/webhook', webhook.trim() ? { url: webhook } : { off: true }));
}
