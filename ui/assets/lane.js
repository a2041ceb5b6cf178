// The head of a lane: which model, which adapters, how strong. It edits its lane in place.

import { button, h, short, text } from './dom.js';

const SUFFIX = /^(.*)~([^~]+:-?[\d.]+(?:\+[^~]+:-?[\d.]+)*)$/;

/** "starter~pirate:1+terse:0.5" -> {model, stack}; names are encoded, so they may hold anything. */
export function parseLane(words) {
  const found = SUFFIX.exec(words);
  if (!found) return { model: words, stack: [] };
  const stack = found[2].split('+').map((part) => {
    const at = part.lastIndexOf(':');
    return { name: decodeURIComponent(part.slice(0, at)), weight: Number(part.slice(at + 1)) };
  });
  return { model: found[1], stack };
}

export function writeLane({ model, stack }) {
  const parts = stack.map(({ name, weight }) =>
    `${encodeURIComponent(name).replaceAll('~', '%7E')}:${weight}`);
  return parts.length ? `${model}~${parts.join('+')}` : model;
}

export class LaneHead {
  /** `doors`: choices, letter, changed(), redraw(), remove() or null. */
  constructor(lane, index, doors) {
    Object.assign(this, { lane, index, doors });
    const models = doors.choices.models.map((model) => [model.path, model.label]);
    if (!models.some(([path]) => path === lane.model)) models.push([lane.model, short(lane.model)]);
    this.element = h('section', { class: 's-lane', style: `--hue:var(--s-run-${index})`,
      'aria-label': `Lane ${doors.letter}`, 'data-testid': `lane-${index}` },
    h('div', { class: 's-lane-top' }, h('b', { class: 's-letter' }, doors.letter),
      select('Model', models, lane.model, (path) => {
        lane.model = path;
        lane.stack = [];
        doors.redraw();
      }),
      doors.remove && button('×', doors.remove, 's-tool', { 'aria-label': 'Remove this lane' })),
    lane.stack.map((part, i) => this.part(part, i)), this.more());
  }

  /** Adapters that were made for this lane's base. */
  fitting() {
    return this.doors.choices.adapters.filter((adapter) => adapter.base === this.lane.model);
  }

  part(part, index) {
    const names = this.fitting().map((adapter) => [adapter.name, adapter.name]);
    if (!names.some(([name]) => name === part.name)) names.push([part.name, part.name]);
    const shown = h('output', {}, part.weight.toFixed(2));
    const slider = h('input', { type: 'range', min: -1, max: 2, step: 0.05, 'aria-label':
      `Weight of ${part.name}`, title: 'Weight: 0 is the base, 1 as trained; double click resets',
    oninput: (event) => this.weigh(part, Number(event.target.value), shown),
    ondblclick: () => { slider.value = 1; this.weigh(part, 1, shown); } });
    slider.value = part.weight;
    return h('div', { class: 's-part' },
      select('Adapter', names, part.name, (name) => { part.name = name; this.doors.redraw(); }),
      slider, shown, button('×', () => { this.lane.stack.splice(index, 1); this.doors.redraw(); },
        's-tool', { 'aria-label': `Take ${part.name} out` }));
  }

  weigh(part, weight, shown) {
    part.weight = Math.round(weight * 100) / 100;
    text(shown, part.weight.toFixed(2));
    clearTimeout(this.timer);
    this.timer = setTimeout(this.doors.changed, 150);
  }

  more() {
    const used = new Set(this.lane.stack.map((part) => part.name));
    const next = this.fitting().find((adapter) => !used.has(adapter.name));
    const bare = !this.lane.stack.length && h('span', { class: 's-quiet' }, 'Base, no adapter');
    const add = next && button('+ Adapter', () => {
      this.lane.stack.push({ name: next.name, weight: 1 });
      this.doors.redraw();
    }, 's-tool');
    return bare || add ? h('div', { class: 's-lane-more' }, bare, add) : '';
  }
}

function select(label, options, value, changed) {
  const node = h('select', { 'aria-label': label, onchange: (e) => changed(e.target.value) },
    options.map(([key, words]) => h('option', { value: key }, words)));
  node.value = value;
  return node;
}
