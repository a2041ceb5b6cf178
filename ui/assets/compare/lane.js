// The head of a lane: its model, its adapters and their weights, edited in place.

import { keepMix, KEPT } from '../adapters/actions.js';
import { button, dots, h, menu, short, t, text } from '../core/dom.js';
import { select } from '../core/form.js';
import { hueOf, isCheckpoint, promoteButton } from '../core/lanes.js';

const choice = (label, choices, value, changed) => select(choices, value, changed, { label: label });

export class LaneHead {
  /** `page`: choices, letter, full, changed(), weigh(), redraw(), add(...lanes), refresh(), remove() or null. */
  constructor(lane, index, page) {
    Object.assign(this, { lane, index, page });
    const models = page.choices.models.map((model) => [model.path, model.label]);
    if (!models.some(([path]) => path === lane.model)) models.push([lane.model, short(lane.model)]);
    this.element = h('section.s-lane', { style: `--hue:${hueOf(index)}`,
      label: t`Lane ${page.letter}`, testid: `lane-${index}` },
    h('div.s-lane-top', h('b.s-letter', page.letter),
      choice(t`Model`, models, lane.model, (path) => {
        lane.model = path;
        lane.stack = [];
        page.redraw();
      }),
      page.remove && button('×', page.remove, 's-tool', { label: t`Remove this lane` })),
    lane.stack.map((part, i) => this.part(part, i)), this.more());
  }

  /** Adapters of this lane's base. */
  fitting() {
    return this.page.choices.adapters.filter((adapter) => adapter.base === this.lane.model);
  }

  part(part, index) {
    const names = this.fitting().map((adapter) => [adapter.name, adapter.label || adapter.name]);
    if (!names.some(([name]) => name === part.name)) names.push([part.name, part.name]);
    const shown = h('output', part.weight.toFixed(2));
    const slider = h('input', { type: 'range', min: -1, max: 2, step: 0.05, label:
      t`Weight of ${part.name}`, title: t`Weight: 0 is the base, 1 as trained; double click resets`,
    oninput: (event) => this.weigh(part, Number(event.target.value), shown),
    ondblclick: () => { slider.value = 1; this.weigh(part, 1, shown); } });
    slider.value = part.weight;
    return h('div.s-part',
      choice(t`Adapter`, names, part.name, (name) => { part.name = name; this.page.redraw(); }),
      slider, shown, button('×', () => { this.lane.stack.splice(index, 1); this.page.redraw(); },
        's-tool', { label: t`Remove ${part.name}` }));
  }

  weigh(part, weight, shown) {
    part.weight = Math.round(weight * 100) / 100;
    text(shown, part.weight.toFixed(2));
    clearTimeout(this.timer);
    this.timer = setTimeout(this.page.changed, 150);
    // A running answer follows at once, but at most every 60 ms.
    this.following ??= setTimeout(() => { this.following = null; this.page.weigh(); }, 60);
  }

  more() {
    const { lane, page } = this, used = new Set(lane.stack.map((part) => part.name));
    const next = this.fitting().find((adapter) => !used.has(adapter.name));
    const words = dots(!lane.stack.length && t`No adapter`, lane.own && t`own settings`);
    return [h('div.s-lane-more', words && h('span.s-quiet', words),
      lane.own && button(t`Share settings`, () => { delete lane.own; page.redraw(); }, 's-tool',
        { title: t`Use the settings of all lanes again` }),
      h('span.s-grow'), this.recipes(),
      lane.stack.length === 1 && isCheckpoint(lane.stack[0].name) && promoteButton(lane.stack[0].name),
      lane.stack.length > 1 && !page.full && button(t`Audition`, () => page.add(...this.audition()),
        's-tool', { title: t`Add a lane for each adapter of this mix alone` }),
      lane.stack.length > 0 && menu(t`Keep mix`, ...Object.entries(KEPT).map(([kind, words]) =>
        button(words, () => keepMix(kind, lane, page.refresh)))),
      next && button(t`+ Adapter`, () => {
        lane.stack.push({ name: next.name, weight: 1 });
        page.redraw();
      }, 's-tool'))];
  }

  audition() {
    return this.lane.stack.map((part) => ({ model: this.lane.model, stack: [{ ...part }] }));
  }

  recipes() {
    const own = (this.page.choices.recipes ?? []).filter((one) => one.model === this.lane.model);
    if (!own.length) return null;
    const options = [['', t`Recipes …`], ...own.map((one) => [one.name, one.name])];
    return choice(t`Recipes`, options, '', (name) => {
      this.lane.stack = structuredClone(own.find((one) => one.name === name).stack);
      this.page.redraw();
    });
  }
}
