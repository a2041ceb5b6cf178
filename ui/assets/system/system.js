// The System page: devices and who holds them, processes, the Ray cluster, and storage (usage, retention
// rules, clean-up with a preview, backup).

import { api, badge, bar, button, bytes, count, duration, fill, h, pairs, quiet, send, sureButton,
  table, text, toast } from '../core/dom.js';

const REFRESH = 3000;

export class Machine extends HTMLElement {
  connectedCallback() {
    this.storage = new Storage(); // built once: a refresh must not clear what is typed in it
    this.cluster = new Cluster(() => this.refresh());
    this.devices = column();
    this.facts = column();
    this.body = h('div', { class: 's-system', 'data-testid': 'system' });
    this.append(this.body);
    this.wake = () => { if (!document.hidden) this.refresh(); };
    document.addEventListener('visibilitychange', this.wake);
    this.refresh();
  }

  disconnectedCallback() {
    document.removeEventListener('visibilitychange', this.wake);
    clearTimeout(this.timer);
  }

  async refresh() {
    clearTimeout(this.timer);
    try {
      this.show(await api('/api/system'));
    } catch (error) {
      if (!this.devices.isConnected) this.body.replaceChildren(h('p', { class: 's-error' }, error.message));
    }
    clearTimeout(this.timer);
    if (!document.hidden && this.isConnected) this.timer = setTimeout(() => this.refresh(), REFRESH);
  }

  show(now) {
    if (!this.devices.isConnected) {
      this.body.replaceChildren(column(this.devices, this.storage.element), column(this.facts, this.cluster.element));
    }
    this.cluster.show(now.cluster);
    this.devices.replaceChildren(card('Devices', now.devices.map(device), now.cluster && clusterDevice(now.cluster)));
    this.facts.replaceChildren(card('Processes', processes(now.processes)),
      card('Home', pairs([['Folder', now.home.path]])), card('Versions', pairs(now.versions)));
  }
}

const card = (title, ...content) => h('section', { class: 's-panel-card' }, h('h2', {}, title), ...content);
const column = (...cards) => h('div', { class: 's-column' }, cards);

function deviceRow(label, name, used, share, status, props = {}) {
  return h('div', { class: 's-device', ...props }, h('header', {}, h('span', {}, h('b', {}, label), ` ${name}`),
    h('span', {}, used)), fill(bar(), share), status);
}

function device({ label, name, total_bytes: total, free_bytes: free, utilization, holders }) {
  const used = total - free;
  const status = [utilization != null && `${count(100 * utilization)}\u202f% busy`, !holders.length && 'free'];
  const row = deviceRow(label, name, `${bytes(used)} of ${bytes(total)} used`, used / total,
    h('span', { class: 's-quiet' }, status.filter(Boolean).join(' · ')));
  if (holders.length) row.append(heldBy(name, holders));
  return row;
}

/** Who holds a device: a run with its estimated memory, chat with what it keeps resident. */
const heldBy = (name, holders) => table(['Held by', 'State', 'Since', 'Memory'], holders.map((one) => [
  one.job ? h('a', { href: `/runs?run=${one.job}` }, one.name) : 'Compare', one.job ? badge(one.state) : one.state,
  duration(one.seconds), one.bytes ? `${one.job ? 'about ' : ''}${bytes(one.bytes)}` : '–']),
{ 'data-testid': `holders-${name}` });

const processes = (rows) => table(['Process', 'State', 'PID', 'Since', 'CPU', 'Memory'], rows.map((row) => [
  h('td', {}, row.role, h('br', {}), h('span', { class: 's-quiet' }, row.what)),
  badge(row.pid ? 'succeeded' : 'queued', row.pid ? 'running' : 'not running'), row.pid ? String(row.pid) : '–',
  duration(row.seconds), row.cpu == null ? '–' : `${count(row.cpu)}\u202f%`, row.pid ? bytes(row.bytes) : '–']));

// -- cluster ---------------------------------------------------------------------------------------

/** The cluster among the devices: how many of its devices are free, or why that is unknown. */
function clusterDevice({ devices, free, kind, machines, version, holders, trouble }) {
  const known = devices != null;
  const facts = known ? [`${machines} machines, Ray ${version}`, holders.length ? `held by ${holders.join(' and ')}`
    : 'free']
    .join(' · ') : 'connecting …';
  return deviceRow('Ray cluster', 'ray', known ? `${free} of ${devices} ${kind}s free` : '',
    known ? (devices - free) / Math.max(1, devices) : 0,
    h('span', { class: trouble ? 's-error' : 's-quiet' }, trouble || facts), { 'data-testid': 'cluster-device' });
}

const field = (label, placeholder) => h('input', { placeholder, 'aria-label': label, autocomplete: 'off' });

class Cluster {
  constructor(changed) {
    this.changed = changed;
    this.address = field('Dashboard address', '10.0.0.5:8265');
    this.storage = field('Storage', '/mnt/shared/studio or s3://bucket/studio');
    this.none = button('Use none', () => this.send({ off: true }));
    this.element = h('section', { class: 's-panel-card s-storage', 'data-testid': 'cluster' },
      h('h2', {}, 'Cluster'), quiet('Optional: a Ray cluster is one more device. Runs whose device is “ray” wait in '
        + 'this queue and train there; their adapters are copied back here.'),
      h('p', { class: 's-rules' }, 'Ray dashboard ', this.address),
      h('p', { class: 's-rules' }, 'Storage that all machines write ', this.storage),
      h('div', { class: 's-actions' }, button('Use this cluster', () => this.send({
        address: this.address.value, storage: this.storage.value })), this.none));
  }

  /** Show the settings, unless the user is typing. */
  show(cluster) {
    this.none.hidden = !cluster;
    if (this.element.contains(document.activeElement) || this.shown === cluster?.address) return;
    this.shown = cluster?.address;
    this.address.value = cluster?.address ?? '';
    this.storage.value = cluster?.storage ?? '';
  }

  async send(values) {
    const found = await send('/api/do/cluster', values);
    if (found) {
      toast(!found.kind && !found.trouble ? 'No cluster is used.'
        : found.trouble || `${found.devices} ${found.kind}s on ${found.machines} machines`,
          found.trouble ? 'error' : undefined);
      this.shown = undefined;
      if (!values.address) this.address.value = this.storage.value = '';
    }
    this.changed();
  }
}

// -- storage ---------------------------------------------------------------------------------------

class Storage {
  constructor() {
    this.parts = h('div', { class: 's-shares' });
    this.runs = h('div', {});
    this.items = h('div', { class: 's-found', 'data-testid': 'spare' });
    const limit = (label, max) => h('input', { type: 'number', min: '0', max, 'aria-label': label,
      onchange: () => this.ask({ keep_checkpoints: Number(this.keep.value),
        keep_days: Number(this.days.value) }) });
    this.keep = limit('Checkpoints kept', '1000');
    this.days = limit('Days kept', '36500');
    this.file = field('Backup file', '/media/disk/studio-backup.tar');
    const backup = button('Back up', async () => {
      text(backup, 'Backing up …');
      await send('/api/do/backup', { file: this.file.value }, (done) =>
        `${done.file} holds ${done.files} files, ${bytes(done.bytes)}.`);
      text(backup, 'Back up');
    });
    this.element = h('section', { class: 's-panel-card s-storage', 'data-testid': 'storage' },
      h('h2', {}, 'Storage'), this.parts, this.runs,
      h('p', { class: 's-rules' }, 'Of a finished run keep the newest ', this.keep,
        ' checkpoints, for ', this.days, ' days (0: for ever).'),
      h('div', { class: 's-actions' }, button('What can be removed?', () => this.clean(false))), this.items,
      h('p', { class: 's-rules' }, 'Whole home into ', this.file, backup),
      quiet('Runs and pages may stay open meanwhile. Restore with: studio restore FILE.'));
    this.refresh();
  }

  async refresh() {
    const found = await send('/api/do/storage', {});
    if (found) this.show(found);
  }

  show({ parts, runs, free_bytes: free, rules }) {
    this.keep.value = rules.keep_checkpoints;
    this.days.value = rules.keep_days;
    const most = Math.max(1, ...parts.map((part) => part.bytes));
    const row = (name, track, size) => h('div', {}, h('span', {}, name), track, h('span', {}, bytes(size)));
    this.parts.replaceChildren(...parts.map((part) => row(part.name, fill(bar(''), part.bytes / most), part.bytes)),
      row('Free on this disk', h('span', {}), free));
    this.runs.replaceChildren(runs.length ? h('details', {}, h('summary', {}, 'Largest runs'), table(null,
      runs.map((run) => [run.id ? h('a', { href: `/runs?run=${run.id}` }, run.name) : run.name, run.state,
        bytes(run.bytes)]))) : '');
  }

  async clean(sure) {
    await this.ask({ yes: sure });
    if (sure) this.refresh();
  }

  async ask(values) {
    const found = await send('/api/do/clean', values);
    if (found) this.list(found);
    else this.refresh(); // the fields show what is stored, not what was refused
  }

  list({ items, bytes: sum, removed }) {
    if (removed) return this.items.replaceChildren(h('p', {}, `${bytes(sum)} are free again.`));
    if (!items.length) return this.items.replaceChildren(quiet('Nothing: everything here is needed.'));
    const more = items.length - 50;
    return this.items.replaceChildren(table(null, items.slice(0, 50).map((item) =>
      [h('td', { title: item.path }, item.what), item.why, bytes(item.bytes)])),
    more > 0 ? quiet(`and ${more} more`) : '',
    sureButton(`Remove all of it, ${bytes(sum)}`, 'Remove for good?', () => this.clean(true)));
  }
}

customElements.define('studio-system', Machine);
