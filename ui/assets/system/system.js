// The System page: devices and who holds them, processes, the Ray cluster, and storage (usage, retention
// rules, clean-up with a preview, backup).

import { api, badge, bar, button, bytes, copy, count, dots, duration, fill, h, pairs, quiet, redraw, send, sureButton,
  t, table, word } from '../core/dom.js';
import { askAction } from '../core/form.js';
import { hubCard } from '../models/models.js';

const REFRESH = 3000;

class Machine extends HTMLElement {
  connectedCallback() {
    this.storage = new Storage(); // built once: a refresh must not clear its list
    this.hub = hubCard(card);
    this.devices = column();
    this.facts = column();
    this.body = h('div.s-system', { testid: 'system' });
    this.append(h('h1.s-hidden', t`System`), this.body);
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
      if (!this.devices.isConnected) redraw(this.body, h('p.s-error', error.message));
    }
    clearTimeout(this.timer);
    if (!document.hidden && this.isConnected) this.timer = setTimeout(() => this.refresh(), REFRESH);
  }

  /** Versions, and the text to paste into a report of a problem; the button survives a refresh. */
  versions(found) {
    this.diagnostics ??= button(t`Copy diagnostics`, async (event) => {
      const node = event.currentTarget;
      copy((await api('/api/do/diagnostics', {})).diagnostics, node);
    }, '', { title: t`Versions, devices, findings, the last error and the end of its log; no secrets, no own paths` });
    return card(t`Versions`, pairs(found), h('div.s-actions', this.diagnostics));
  }

  show(now) {
    if (!this.devices.isConnected) {
      redraw(this.body, column(this.devices, this.storage.element, this.hub), this.facts);
    }
    redraw(this.devices, card(t`Devices`, now.devices.map(device), now.blocked.map(blocked),
      now.cluster && clusterDevice(now.cluster)));
    redraw(this.facts, card(t`Processes`, processes(now.processes)),
      card(t`Home`, pairs([[t`Folder`, now.home.path]])), this.versions(now.versions),
      clusterCard(now.cluster, () => this.refresh()));
  }
}

const card = (title, ...content) => h('section.s-panel-card', h('h2', title), ...content);
const column = (...cards) => h('div.s-column', cards);

function deviceRow(label, name, used, share, status, props = {}) {
  return h('div.s-device', { ...props }, h('header', h('span', h('b', label), ` ${name}`),
    h('span', used)), fill(bar(), share), status);
}

function device({ label, name, total_bytes: total, free_bytes: free, utilization, holders }) {
  const used = total - free;
  const status = dots(utilization != null && t`${count(100 * utilization)}\u202f% busy`, !holders.length && t`free`);
  const row = deviceRow(label, name, t`${bytes(used)} of ${bytes(total)} used`, used / total,
    h('span.s-quiet', status));
  if (holders.length) row.append(heldBy(name, holders));
  return row;
}

/** A GPU that torch cannot use, why, and the command that mends it. */
const blocked = ({ label, why, command }) => deviceRow(label, '', t`not used`, 0,
  h('span.s-error', why, command && h('code', ` ${command}`)));

/** Who holds a device: a run with its estimated memory, chat with what it keeps resident. */
const heldBy = (name, holders) => table([t`Held by`, t`State`, t`Since`, t`Memory`], holders.map((one) => [
  one.job ? h('a', { href: `/runs?run=${one.job}` }, one.name) : t`Compare`,
  one.job ? badge(one.state) : word(one.state),
  duration(one.seconds), one.bytes ? `${one.job ? t`about ` : ''}${bytes(one.bytes)}` : '–']),
{ testid: `holders-${name}` });

const processes = (rows) => table([t`Process`, t`State`, 'PID', t`Since`, 'CPU', t`Memory`], rows.map((row) => [
  h('td', { title: row.what }, row.role, h('div.s-quiet.s-what', row.what)),
  badge(row.pid ? 'succeeded' : 'queued', row.pid ? word('running') : t`not running`), row.pid ? String(row.pid) : '–',
  duration(row.seconds), row.cpu == null ? '–' : `${count(row.cpu)}\u202f%`, row.pid ? bytes(row.bytes) : '–']));

// -- cluster --

/** The cluster among the devices: how many of its devices are free, or why that is unknown. */
function clusterDevice({ devices, free, kind, machines, version, holders, trouble }) {
  const known = devices != null;
  const facts = known ? [t`${machines} machines, Ray ${version}`, holders.length ? t`held by ${holders.join(', ')}`
    : t`free`]
    .join(' · ') : t`connecting …`;
  return deviceRow(t`Ray cluster`, 'ray', known ? t`${free} of ${devices} ${kind}s free` : '',
    known ? (devices - free) / Math.max(1, devices) : 0,
    h('span', { class: trouble ? 's-error' : 's-quiet' }, trouble || facts), { testid: 'cluster-device' });
}

/** The card of the cluster, whose settings are those of its action. */
function clusterCard(cluster, refresh) {
  const described = (found) => {
    refresh();
    if (!found?.kind && !found?.trouble) return t`No cluster is used.`;
    return found.trouble || t`${found.devices} ${found.kind}s on ${found.machines} machines`;
  };
  return card(t`Cluster`, quiet(t`Optional: a Ray cluster is one more device. Runs whose device is “ray” wait in this
    queue and train there; their adapters are copied back here.`),
  cluster && pairs([[t`Ray dashboard`, cluster.address], [t`Storage that all machines write`, cluster.storage]]),
  h('div.s-actions', button(cluster ? t`Change …` : t`Use a cluster …`, () => askAction('cluster', {
    title: t`Use a Ray cluster`, label: t`Use`, only: ['address', 'storage'], done: described,
    values: { address: cluster?.address, storage: cluster?.storage } })),
  cluster && button(t`Use none`, () => send('/api/do/cluster', { off: true }, described))));
}

// -- storage --

class Storage {
  constructor() {
    this.parts = h('div.s-shares');
    this.runs = h('div');
    this.items = h('div.s-found', { testid: 'spare' });
    this.rules = h('div');
    this.element = card(t`Storage`, this.parts, this.runs, this.rules, h('div.s-actions',
      button(t`What can be removed?`, () => this.clean(false)),
      button(t`Trash …`, () => this.clean(false, true)),
      button(t`Rules …`, () => askAction('clean', { title: t`Set what to keep`, label: t`Set`,
        only: ['keep_checkpoints', 'keep_days'], values: this.kept,
        note: t`What the new rules would remove is listed first.`,
        done: (found) => { this.list(found); this.refresh(); } })),
      button(t`Back up …`, () => askAction('backup', { done: ({ file, files, bytes: size }) =>
        t`${file} holds ${files} files, ${bytes(size)}.` }))), this.items,
    quiet(t`Runs and pages may stay open during a backup. Restore with: studio restore FILE.`));
    this.element.dataset.testid = 'storage';
    this.refresh();
  }

  async refresh() {
    const found = await send('/api/do/storage', {});
    if (found) this.show(found);
  }

  show({ parts, runs, free_bytes: free, rules }) {
    this.kept = rules;
    redraw(this.rules, pairs([[t`Checkpoints kept of a finished run`, rules.keep_checkpoints],
      [t`Days until they go`, rules.keep_days || t`no limit`]]));
    const most = Math.max(1, ...parts.map((part) => part.bytes));
    const row = (name, track, size) => h('div', h('span', name), track, h('span', bytes(size)));
    redraw(this.parts, ...parts.map((part) =>
      row(word(part.name), fill(bar(''), part.bytes / most), part.bytes)),
      row(t`Free on this disk`, h('span'), free));
    redraw(this.runs, runs.length ? h('details', h('summary', t`Largest runs`), table(null,
      runs.map((run) => [run.id ? h('a', { href: `/runs?run=${run.id}` }, run.name) : run.name, word(run.state),
        bytes(run.bytes)]))) : '');
  }

  async clean(yes, trash = false) {
    const found = await send('/api/do/clean', { yes, trash });
    if (found) this.list(found, trash);
    if (yes) this.refresh();
  }

  list({ items, bytes: sum, removed }, trash = false) {
    if (removed) return redraw(this.items, h('p', t`${bytes(sum)} are free again.`));
    if (!items.length) return redraw(this.items, quiet(t`Nothing: everything here is needed.`));
    const more = items.length - 50;
    return redraw(this.items, table(null, items.slice(0, 50).map((item) =>
      [h('td', { title: item.path }, item.what), item.why, bytes(item.bytes)])),
    more > 0 ? quiet(t`and ${more} more`) : '',
    sureButton(t`Remove all of it, ${bytes(sum)}`, t`Remove for good?`, () => this.clean(true, trash)));
  }
}

customElements.define('studio-system', Machine);
