// What an adapter changed: a heat map of its change per layer and module.

import { h, number, percent, t, table } from '../core/dom.js';

/** `changes`: [{layer, module, norm, relative, effective_rank}]. */
export function heatmap(changes) {
  const layers = [...new Set(changes.map((one) => one.layer))].sort((a, b) => a - b);
  const modules = [...new Set(changes.map((one) => one.module))];
  const cells = new Map(changes.map((one) => [`${one.layer} ${one.module}`, one]));
  const most = Math.max(...changes.map((one) => one.norm), 1e-12);
  const relative = changes.some((one) => one.relative);
  const size = (one) => (one.relative ? percent(one.norm) : number(one.norm, 3));
  const cell = (layer, module) => {
    const one = cells.get(`${layer} ${module}`);
    if (!one) return h('td.s-heat-none');
    const share = Math.sqrt(one.norm / most); // small changes stay visible
    const rank = one.effective_rank;
    return h('td', { class: share > 0.55 ? 's-heat s-heat-dark' : 's-heat',
      style: `--share:${(100 * share).toFixed(1)}%`,
      title: `${place(one)}: ${one.relative ? t`changed by` : t`size`} ${size(one)}`
        + (rank == null ? '' : t`, effective rank ${number(rank, 3)}`) },
    h('span', rank == null ? '' : number(rank, 2)),
    h('span.s-heat-words', size(one)));
  };
  const strongest = changes.reduce((a, b) => (b.norm > a.norm ? b : a), changes[0]);
  return h('figure.s-heatmap',
    h('div.s-heat-scroll', table([t`Layer`, ...modules.map((module) => h('th', { scope: 'col',
      title: module },
      h('span', module.split('.').slice(-2).join('.'))))], layers.map((layer) => [
      h('th', { scope: 'row' }, layer < 0 ? t`outside` : String(layer)), ...modules.map((module) => cell(layer,
        module))]),
    { class: '', label: t`What the adapter changed` })),
    h('figcaption.s-quiet', relative
      ? t`Colour: size of the change against the weight it changes, up to ${size(strongest)} (${
        place(strongest)}). Number: effective rank of the change.`
      : t`Colour: root mean square of its own numbers, up to ${size(strongest)}. Number: effective rank.`));
}

const place = (one) => (one.layer < 0 ? one.module : t`layer ${one.layer}, ${one.module}`);
