// System: what this machine has, who uses it, and where everything lives.

import { api, badge, bytes, count, duration, h } from './dom.js';
import { ClusterChoice, clusterDevice } from './cluster.js';
import { Storage } from './storage.js';

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
