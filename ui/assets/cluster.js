// System, cluster: a Ray cluster as one more device, and where a person names it.

import { api, button, h, toast } from './dom.js';

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
