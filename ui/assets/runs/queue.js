// The queue: hold or release it, policy after an error, notifications, and the dialogs that plan a run
// (schedule, sweep, train longer, note and tags, webhook).

import { api, button, h, text, toast } from '../core/dom.js';
import { dialog, labelled } from '../core/form.js';
import { poke, toggle, wanted } from '../core/live.js';

export class QueueBar {
  constructor() {
    this.holding = button('Hold all', () => change({ held: !this.queue?.held }), 's-tool',
      { 'data-testid': 'hold-queue' });
    this.onError = h('select', { 'aria-label': 'After an error', onchange: (e) =>
      change({ on_error: e.target.value }) }, h('option', { value: 'continue' }, 'Errors: go on'),
    h('option', { value: 'stop' }, 'Errors: stop'));
    this.telling = button('', async () => {
      const refused = await toggle();
      if (refused) toast(refused, 'error');
      this.tell();
    }, 's-tool', { title: 'A desktop notification when a run ends' });
    this.keys = h('p', { class: 's-keys', 'data-testid': 'queue-keys' },
      h('kbd', {}, 'Alt ↑'), ' ', h('kbd', {}, 'Alt ↓'), ' move a run, ', h('kbd', {}, 'Alt Home'),
      ' puts it first.');
    this.element = h('div', { class: 's-queue-bar', hidden: true }, this.holding, this.onError, this.telling,
      button('Webhook', () => planTelling().catch((error) => toast(error.message, 'error')), 's-tool'),
      this.keys);
  }

  /** `shown`: whether the list is the queue; `many`: whether there is an order to change. */
  show(queue, shown, many) {
    this.queue = queue;
    this.element.hidden = !shown;
    this.keys.hidden = !many;
    text(this.holding, queue?.held ? 'Release all' : 'Hold all');
    this.tell();
    if (document.activeElement !== this.onError) this.onError.value = queue?.on_error ?? 'continue';
  }

  tell() {
    text(this.telling, wanted() ? 'Notify: on' : 'Notify: off');
  }
}

async function change(wish) {
  await api('/api/queue', wish).catch((error) => toast(error.message, 'error'));
  poke();
}

/** A dialog of `fields`: [label, control, hint]; `send()` returns a promise of what to say, or throws. */
function ask(title, fields, label, send) {
  dialog(title, fields.map((field) => labelled(...field)), label, async () => {
    const said = await send();
    if (said) toast(said);
  });
}

const select = (choices, value) => h('select', {}, choices.map(([id, name]) =>
  h('option', { value: id, selected: id === value }, name)));

const input = (props) => h('input', { autocomplete: 'off', ...props });

export function planSchedule(job, jobs) {
  const at = input({ placeholder: '02:30, +2h or 2027-01-31 02:30', value: job.start_after > Date.now() / 1000 + 60
    ? local(job.start_after) : '' });
  const when = select([['', 'At any time'], ['idle', 'Only when the machine is idle'],
    ['night', 'Only at night (22 to 7)']], job.start_when);
  const older = jobs.filter((one) => one.id < job.id
    && (one.state !== 'failed' && one.state !== 'cancelled')).slice(0, 60);
  const needs = h('select', { multiple: true, size: String(Math.min(5, Math.max(2, older.length))) },
    older.map((one) => h('option', { value: String(one.id), selected: job.needs.includes(one.id) },
      `${one.id} · ${one.name}`)));
  const retries = input({ type: 'number', min: '0', max: '10', value: String(job.retries_left ?? 0) });
  ask('When it starts', [['Not before', at, 'Empty: as soon as it is its turn'], ['Only', when],
    ['After these succeeded', needs, 'Ctrl-click chooses several, or none'],
    ['Try again', retries, 'How often, later each time, after a failure that may pass, such as too little memory']], 'Plan', async () => {
    await api(`/api/jobs/${job.id}/schedule`, { at: at.value, when: when.value,
      retries: (Number(retries.value) || 0) === job.retries_left ? null : Number(retries.value) || 0,
      needs: [...needs.selectedOptions].map((option) => Number(option.value)) });
  });
}

const local = (time) => {
  const date = new Date(time * 1000 - new Date().getTimezoneOffset() * 60000);
  return date.toISOString().slice(0, 16).replace('T', ' ');
};

const FIELDS = ['method.r', 'method.lora_alpha', 'method.lora_dropout', 'method.name',
  'train.learning_rate', 'train.num_train_epochs', 'train.max_steps', 'train.warmup_steps',
  'train.per_device_train_batch_size', 'train.weight_decay', 'data.path', 'data.max_length',
  'model.path', 'seed'];

/** A sweep from a run, or from the form: its address assignments in `set`. */
export function planSweep(job, set = []) {
  const name = input({ required: true, placeholder: 'ranks', value: '' });
  const lines = h('textarea', { rows: '4', spellcheck: 'false', 'aria-label': 'Values',
    placeholder: 'method.r = 4, 8, 16\nseed = 0, 1' });
  const known = h('div', { class: 's-chips' }, FIELDS.map((field) => button(field, () => {
    lines.value = lines.value.trim() ? `${lines.value.trimEnd()}\n${field} = ` : `${field} = `;
    lines.focus();
  }, 's-tool')));
  const draw = input({ type: 'number', min: '0', max: '1000', value: '0' });
  const onError = select([['continue', 'Go on with the others'], ['stop', 'Hold the rest']], 'continue');
  const total = h('small', { class: 's-quiet' }, 'One line a field: field = value, value, …');
  const over = () => lines.value.split('\n').map((line) => line.trim()).filter(Boolean)
    .map((line) => line.replace(/\s*=\s*/, '='));
  const count = () => {
    const all = over().reduce((n, line) => n * line.slice(line.indexOf('=') + 1).split(',')
      .filter((value) => value.trim()).length, over().length ? 1 : 0);
    const some = Math.min(all, Number(draw.value) || all);
    total.textContent = all ? `${some} run${some > 1 ? 's' : ''}` : 'No values yet';
  };
  lines.addEventListener('input', count);
  draw.addEventListener('input', count);
  const title = job ? `Sweep from ${job.name}` : 'Sweep from this form';
  ask(title, [['Name', name], ['Values to try', h('div', { class: 's-stack' }, lines, total, known)],
    ['Draw at random', draw, '0 tries every combination'], ['After an error', onError]],
  'Queue the sweep', async () => {
    const answer = await api('/api/sweeps', { ...(job ? { job: job.id } : { set }), name: name.value, over: over(),
      count: Number(draw.value) || 0, on_error: onError.value });
    return `${answer.jobs.length} runs are queued.`;
  });
}

export function planLonger(job) {
  const much = input({ type: 'number', min: '0', step: 'any', required: true, value: '1' });
  const unit = select([['epochs', 'epochs'], ['steps', 'steps']], 'epochs');
  const name = input({ placeholder: 'made up when empty', maxlength: '120' });
  ask(`Train ${job.name} longer`, [['How much more', h('div', { class: 's-side-by-side' }, much, unit),
    'A new run that starts from the newest checkpoint'], ['Name', name]], 'Queue', async () => {
    const answer = await api(`/api/jobs/${job.id}/extend`, { [unit.value]: Number(much.value),
      name: name.value });
    return `${answer.name} is queued, from step ${answer.step}.`;
  });
}

export function planWords(job) {
  const tags = input({ value: job.tags.join(', '), placeholder: 'baseline, keep' });
  const notes = h('textarea', { rows: '5', maxlength: '10000' });
  notes.value = job.notes;
  ask(`Note on ${job.name}`, [['Tags', tags, 'Separated by commas; the search finds them'],
    ['Note', notes]], 'Keep', async () => {
    await api(`/api/jobs/${job.id}/note`, { notes: notes.value,
      tags: tags.value.split(',').map((tag) => tag.trim()).filter(Boolean) });
  });
}

export async function planTelling() {
  const now = await api('/api/queue');
  const url = input({ type: 'url', placeholder: now.webhook ?? 'An http or https address' });
  ask('Tell an address when a run ends', [['Webhook', url, now.webhook
    ? `Now ${now.webhook}. Empty tells nobody any more.`
    : 'One POST of JSON for each end. The address is kept where only you can read it.']], 'Keep',
  async () => { await api('/api/queue', { webhook: url.value.trim() }); });
}
