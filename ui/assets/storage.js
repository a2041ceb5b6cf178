// System, storage: what uses space, the largest runs, the rules, a clean-up with a preview, a backup.

import { api, bytes, button, h, sureButton, toast } from './dom.js';

export class Storage {
  constructor() {
    this.parts = h('div', { class: 's-shares' });
    this.runs = h('div', {});
    this.items = h('div', { class: 's-found', 'data-testid': 'spare' });
    this.keep = h('input', { type: 'number', min: '0', max: '1000', 'aria-label': 'Checkpoints kept' });
    this.days = h('input', { type: 'number', min: '0', max: '36500', 'aria-label': 'Days kept' });
    for (const field of [this.keep, this.days]) field.addEventListener('change', () => this.rule());
    this.file = h('input', { placeholder: '/media/disk/studio-backup.tar', 'aria-label': 'Backup file',
      autocomplete: 'off' });
    this.element = h('section', { class: 's-panel-card s-storage', 'data-testid': 'storage' },
      h('h2', {}, 'Storage'), this.parts, this.runs,
      h('p', { class: 's-rules' }, 'Of a finished run keep the newest ', this.keep,
        ' checkpoints, for ', this.days, ' days (0: for ever).'),
      h('div', { class: 's-actions' }, button('What could go?', () => this.clean(false))), this.items,
      h('p', { class: 's-rules' }, 'Whole home into ', this.file, button('Back up', (e) =>
        this.backup(e.currentTarget))),
      h('p', { class: 's-quiet' }, 'It may be in use meanwhile. To bring it back: studio restore FILE.'));
    this.refresh();
  }

  async refresh() {
    try {
      this.show(await api('/api/storage'));
    } catch (error) {
      toast(error.message, 'error');
    }
  }

  show({ parts, runs, free_bytes: free, rules }) {
    this.keep.value = rules.keep_checkpoints;
    this.days.value = rules.keep_days;
    const most = Math.max(1, ...parts.map((part) => part.bytes));
    this.parts.replaceChildren(...parts.map((part) => {
      const bar = h('span', { class: 's-bar-track' }, h('span', {}));
      bar.firstChild.style.width = `${(100 * part.bytes) / most}%`;
      return h('div', {}, h('span', {}, part.name), bar, h('span', {}, bytes(part.bytes)));
    }), h('div', {}, h('span', {}, 'Free on this disk'), h('span', {}), h('span', {}, bytes(free))));
    this.runs.replaceChildren(runs.length ? h('details', {}, h('summary', {}, 'Largest runs'),
      h('table', { class: 's-table' }, h('tbody', {}, runs.map((run) => h('tr', {},
        h('td', {}, run.id ? h('a', { href: `/runs?run=${run.id}` }, run.name) : run.name),
        h('td', {}, run.state), h('td', {}, bytes(run.bytes))))))) : '');
  }

  async rule() {
    await this.ask('/api/storage/rules', { keep_checkpoints: Number(this.keep.value),
      keep_days: Number(this.days.value) });
  }

  async clean(sure) {
    await this.ask('/api/storage/clean', { sure });
    if (sure) this.refresh();
  }

  async ask(path, body) {
    try {
      this.list(await api(path, body));
    } catch (error) {
      toast(error.message, 'error');
      this.refresh(); // the fields show what is kept, not what was refused
    }
  }

  list({ items, bytes: sum, removed }) {
    if (removed) {
      this.items.replaceChildren(h('p', {}, `${bytes(sum)} are free again.`));
      return;
    }
    this.items.replaceChildren(...(items.length ? [
      h('table', { class: 's-table' }, h('tbody', {}, items.slice(0, 50).map((item) => h('tr', {
        title: item.path }, h('td', {}, item.what), h('td', {}, item.why),
      h('td', {}, bytes(item.bytes)))))),
      items.length > 50 && h('p', { class: 's-quiet' }, `and ${items.length - 50} more`),
      sureButton(`Remove all of it, ${bytes(sum)}`, 'Remove for good?', () => this.clean(true)),
    ].filter(Boolean) : [h('p', { class: 's-quiet' }, 'Nothing: everything here is needed.')]));
  }

  async backup(node) {
    node.disabled = true;
    node.textContent = 'Backing up …';
    try {
      const done = await api('/api/storage/backup', { file: this.file.value });
      toast(`${done.file} holds ${done.files} files, ${bytes(done.bytes)}.`);
    } catch (error) {
      toast(error.message, 'error');
    }
    node.disabled = false;
    node.textContent = 'Back up';
  }
}
