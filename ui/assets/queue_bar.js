// What a person can say of the whole queue, above its list: hold it, what an error does, who is told
// of an end, and by which keys one run is moved.

import { api, button, h, text, toast } from './dom.js';
import { poke } from './live.js';
import { planTelling } from './plan.js';
import { toggle, wanted } from './notify.js';

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
