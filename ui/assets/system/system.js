// The System page: devices and who holds them, processes, the Ray cluster, and storage (usage, retention
// rules, clean-up with a preview, backup).

import { api, badge, button, bytes, count, duration, h, sureButton, toast } from '../core/dom.js';

export class Machine extends HTMLElement {
  connectedCallback() {
    if (this.timer) return;
    this.body = h('div', { class: 's-system', 'data-testid': 'system' });
    this.storage = new Storage(); // built once: a refresh must not take what is typed in it
    this.cluster = new ClusterChoice(() => this.refresh());
    this.append(this.body);
    this.refresh();
    this.timer = setInterval(() => { if (!document.hidden) this.refresh(); }, 3000);
  }

  disconnectedCallback() {
    clearInterval(this.timer);
    this.timer = 0;
  }

  async refresh() {
    let now;
    try {
      now = await api('/api/system');
    } catch (error) {
      if (!this.body.children.length) this.body.append(h('p', { class: 's-error' }, error.message));
      return;
    }
    if (!this.body.children.length) {
      this.devices = column();
      this.facts = column();
      this.body.append(column(this.devices, this.storage.element), column(this.facts, this.cluster.element));
    }
    this.cluster.show(now.cluster);
    this.devices.replaceChildren(card('Devices', ...now.devices.map((device) => this.device(device)),
      ...(now.cluster ? [clusterDevice(now.cluster)] : [])));
    this.facts.replaceChildren(card('Processes', this.processes(now.processes)),
      card('Home', pairs([['Folder', now.home.path]])), card('Versions', pairs(now.versions)));
  }

  device(device) {
    const used = device.total_bytes - device.free_bytes;
    const bar = h('span', { class: 's-bar-track s-wide' }, h('span', {}));
    bar.firstChild.style.width = `${(100 * used) / device.total_bytes}%`;
    return h('div', { class: 's-device' },
      h('header', {}, h('span', {}, h('b', {}, device.label), ` ${device.name}`),
        h('span', {}, `${bytes(used)} of ${bytes(device.total_bytes)} used`)), bar,
      h('span', { class: 's-quiet' }, [device.utilization != null
        && `${count(100 * device.utilization)}\u202f% busy`, !device.holders.length && 'free']
        .filter(Boolean).join(' · ')),
      device.holders.length > 0 && this.holders(device));
  }

  /** Who holds the device: a run with what it was estimated to need, chat with what it keeps. */
  holders(device) {
    return h('table', { class: 's-table', 'data-testid': `holders-${device.name}` },
      h('thead', {}, h('tr', {}, ['Held by', 'State', 'Since', 'Memory'].map((name) =>
        h('th', { scope: 'col' }, name)))),
      h('tbody', {}, device.holders.map((one) => h('tr', {},
        h('td', {}, one.job ? h('a', { href: `/runs?run=${one.job}` }, one.name) : 'Compare'),
        h('td', {}, one.job ? badge(one.state) : one.state), h('td', {}, duration(one.seconds)),
        h('td', {}, one.bytes ? `${one.job ? 'about ' : ''}${bytes(one.bytes)}` : '–')))));
  }

  processes(rows) {
    return h('table', { class: 's-table' },
      h('thead', {}, h('tr', {}, ['Process', 'State', 'PID', 'Since', 'CPU', 'Memory'].map((name) =>
        h('th', { scope: 'col' }, name)))),
      h('tbody', {}, rows.map((row) => h('tr', {}, h('td', {}, row.role, h('br', {}), h('span', { class: 's-quiet' }, row.what)),
        h('td', {}, badge(row.pid ? 'succeeded' : 'queued', row.pid ? 'alive' : 'not running')),
        h('td', {}, row.pid ? String(row.pid) : '–'), h('td', {}, duration(row.seconds)),
        h('td', {}, row.cpu == null ? '–' : `${count(row.cpu)}\u202f%`),
        h('td', {}, row.pid ? bytes(row.bytes) : '–')))));
  }
}

const card = (title, ...content) => h('section', { class: 's-panel-card' }, h('h2', {}, title), ...content);

const column = (...cards) => h('div', { class: 's-column' }, cards);

const pairs = (rows) => h('dl', { class: 's-pairs' }, rows.map(([name, value]) =>
  h('div', {}, h('dt', {}, name), h('dd', {}, value))));

/** The cluster among the devices: how many of its own are free, or why nobody knows. */
export function clusterDevice(cluster) {
  const known = cluster.devices != null;
  const used = known ? cluster.devices - cluster.free : 0;
  const bar = h('span', { class: 's-bar-track s-wide' }, h('span', {}));
  bar.firstChild.style.width = `${(100 * used) / Math.max(1, cluster.devices ?? 1)}%`;
  return h('div', { class: 's-device', 'data-testid': 'cluster-device' },
    h('header', {}, h('span', {}, h('b', {}, 'Ray cluster'), ' ray'),
      h('span', {}, known ? `${cluster.free} of ${cluster.devices} ${cluster.kind}s free` : '')), bar,
    h('span', { class: cluster.trouble ? 's-error' : 's-quiet' }, cluster.trouble || (known
      ? [`${cluster.machines} machines, Ray ${cluster.version}`, cluster.holders.length
        ? `held by ${cluster.holders.join(' and ')}` : 'free'].join(' · ') : 'asking …')));
}

export class ClusterChoice {
  constructor(changed) {
    this.changed = changed;
    this.address = h('input', { placeholder: '10.0.0.5:8265', 'aria-label': 'Dashboard address',
      autocomplete: 'off' });
    this.storage = h('input', { placeholder: '/mnt/shared/studio or s3://bucket/studio',
      'aria-label': 'Storage', autocomplete: 'off' });
    this.none = button('Use none', () => this.send({}));
    this.element = h('section', { class: 's-panel-card s-storage', 'data-testid': 'cluster' },
      h('h2', {}, 'Cluster'), h('p', { class: 's-quiet' }, 'Optional: a Ray cluster is one more device. Runs whose '
        + 'device is “ray” wait in this queue, train there, and their adapters come home.'),
      h('p', { class: 's-rules' }, 'Ray dashboard ', this.address),
      h('p', { class: 's-rules' }, 'Storage that all machines write ', this.storage),
      h('div', { class: 's-actions' }, button('Use this cluster', () => this.send({
        address: this.address.value, storage: this.storage.value })), this.none));
  }

  /** Show what is set, unless somebody types. */
  show(cluster) {
    this.none.hidden = !cluster;
    if (this.element.contains(document.activeElement) || this.shown === cluster?.address) return;
    this.shown = cluster?.address;
    this.address.value = cluster?.address ?? '';
    this.storage.value = cluster?.storage ?? '';
  }

  async send(wanted) {
    try {
      const found = await api('/api/cluster', wanted);
      toast(found ? found.trouble || `${found.devices} ${found.kind}s on ${found.machines} machines`
        : 'No cluster is used.', found?.trouble ? 'error' : undefined);
      this.shown = undefined;
      if (!found) this.address.value = this.storage.value = '';
    } catch (error) {
      toast(error.message, 'error');
    }
    this.changed();
  }
}

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

customElements.define('studio-system', Machine);
