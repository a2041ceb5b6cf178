// The passport of one adapter: composition, training, and a heat map of the change per layer and
// module. Name and tags are edited here.

import { board } from '../core/chart.js';
import { badge, button, bytes, count, dots, h, number, pairs, percent, quiet, redraw, send, snippet, sureButton, t,
  text, when, word } from '../core/dom.js';
import { blindTest, compareAdapters, laneName, parseLane } from '../core/lanes.js';
import { hues, poke, subscribe } from '../core/live.js';
import { forgettingCard, heatmap } from '../core/outcome.js';
import { NEXT_STAGE, planNext } from '../runs/queue.js';
import { askExport } from './actions.js';

export class Passport {
  constructor(page) {
    this.page = page;
    this.element = h('aside.s-drawer', { hidden: true, tabindex: '-1', label: t`Passport`,
      testid: 'passport', onkeydown: (event) => { if (event.key === 'Escape') this.hide(); } });
    subscribe({
      element: page,
      runs: () => (this.run ? [this.run] : []),
      names: () => ['loss', 'eval_loss'],
      onMetrics: (series) => this.board?.update(series),
    });
  }

  hide() {
    const inside = this.element.contains(document.activeElement);
    this.element.hidden = true;
    if (inside) this.page.focus(); // back to where it was opened
    this.run = this.shown = null;
    this.page.close();
  }

  async show(id) {
    const one = await send('/api/do/adapters.show', { adapter: id });
    if (!one) { this.element.hidden = true; return; }
    const words = JSON.stringify(one);
    if (this.page.chosen !== id || (this.shown === words && !this.element.hidden)) return;
    const field = document.activeElement; // what is typed there stays
    if (field?.localName === 'input' && this.element.contains(field) && field.value !== field.defaultValue) {
      field.onblur = () => field.value === field.defaultValue && this.show(id);
      return;
    }
    this.shown = words;
    this.run = one.run;
    const opened = this.element.hidden;
    this.element.hidden = false;
    redraw(this.element, this.head(one), this.actions(one), this.tags(one), this.facts(one),
      this.curve(one), forgettingCard(one.passport.forgetting), this.picture(one), this.spec(one));
    if (opened) this.element.focus({ preventScroll: true });
    poke();
  }

  head(one) {
    const name = h('input', { type: 'text', value: one.name, label: t`Name`, testid: 'name', onkeydown: (event) => {
      if (event.key === 'Enter') name.blur();
      if (event.key === 'Escape') { name.value = one.name; event.stopPropagation(); name.blur(); }
    }, onchange: async () => { // a refused name is not shown as if it were the adapter's
      if (name.value.trim() !== one.name && !await this.page.rename(one, name.value)) name.value = one.name;
    } });
    return h('header', h('h2.s-hidden', one.name), name, button('×', () => this.hide(), 's-tool', { label: t`Close` }));
  }

  actions(one) {
    return h('div.s-actions',
      h('a.s-button.s-primary', { href: compareAdapters([one]) }, t`Compare with the base`),
      h('a.s-button', { href: blindTest(one),
        title: t`Against what it was trained from, without names; your votes give the win rate` }, t`Blind test`),
      one.run && h('a.s-button', { href: `/runs?run=${one.run}` }, t`Its run`),
      one.run && !one.is_model && button(NEXT_STAGE, () => planNext({ ...one, id: one.run })),
      h('a.s-button', { href: `/api/download/adapter/${one.id}`, download: '',
        title: t`${bytes(one.size_bytes)}, its folder as a zip: PEFT and most tools read it` }, t`Download`),
      button(t`Export …`, () => askExport(this.page, [one])),
      sureButton(t`Delete`, one.children?.length ? t`Delete what ${one.children.join(', ')} came from?`
        : t`Really delete?`, () => this.page.remove(one)));
  }

  tags(one) {
    const field = h('input', { type: 'text', placeholder: t`good, for the demo`, testid: 'tags',
      value: one.tags.join(', '),
      onkeydown: (event) => { if (event.key === 'Enter') field.blur(); },
      onchange: () => this.page.tag(one, field.value) });
    return h('label.s-labelled', h('span', t`Tags, separated by commas`), field);
  }

  facts(one) {
    const { seed, imported_from: imported } = one.passport;
    const [base, data, versions, mix] = ['base', 'data', 'versions', 'mix'].map((name) => one.passport[name] ?? {});
    const libraries = Object.entries(versions).filter(([, version]) => version)
      .map(([name, version]) => `${name} ${version}`);
    const rows = [
      [t`Method`, one.method_title], [t`Base`, one.base || t`unknown`],
      [t`Base fingerprint`, base.fingerprint], [t`Dataset`, one.data], [t`Data hash`, data.hash],
      [t`Chat template`, data.template],
      [t`Steps`, one.steps ? count(one.steps) : ''],
      [t`Losses`, one.last_loss == null ? '' : dots(
        t`${number(one.first_loss)} first, ${number(one.last_loss)} last`, one.eval_loss != null
        && t`${number(one.eval_loss)} held out`, one.best_eval_loss != null && t`best ${number(one.best_eval_loss)}`)],
      [t`Blind test`, won(one.blind_test)], [t`Seed`, seed], [t`Libraries`, libraries.join(', ')],
      [t`Made from`, one.parents.join(', ')],
      [t`Mix`, mix.how && t`${mix.how}, ${percent(mix.error, 2)} from the weighted sum`],
      [t`Imported from`, imported],
      [t`Made`, one.created ? when(one.created) : ''],
      [t`Size`, bytes(one.size_bytes)], [t`Folder`, one.path],
    ].filter(([, value]) => value != null && value !== '' && value !== 0);
    return h('section', h('h3', t`Passport`, ' ', badge(ENDED[one.ended] ?? 'queued',
      word(ending(one)) || t`no passport`)), pairs(rows));
  }

  curve(one) {
    if (!this.run) return '';
    this.board ??= board(['loss', 'eval_loss']);
    this.board.group.set({ zoom: null, hues: hues([this.run]), names: new Map([[this.run, one.name]]) });
    return h('section.s-drawer-charts', this.board.charts.map((chart) => chart.element));
  }

  picture(one) {
    const note = quiet(t`A queued job that loads the base once, on the CPU.`);
    const measure = async () => {
      const job = await send('/api/do/adapters.picture', { adapter: one.path });
      if (job) text(note, t`Measuring: the map appears here when it is done.`);
      poke();
    };
    return h('section', { testid: 'picture' }, h('h3', t`What it changed`),
      one.picture ? heatmap(one.picture.changes) : h('div', note, button(t`Measure`, measure)));
  }

  spec({ passport: { spec } }) {
    return h('details.s-spec', h('summary', t`Frozen spec`),
      spec?.method ? snippet('spec.json', JSON.stringify(spec, null, 1)) : quiet(t`This adapter has none.`));
  }
}

const won = ({ votes, rate, low, high, lanes }) => votes
  && t`won ${percent(rate, 2)} (${percent(low, 2)} to ${percent(high, 2)})
    of ${count(votes)} blind vote${votes > 1 ? 's' : ''} against ${laneName(parseLane(lanes[0]))}`;

/** How an adapter's training ended, and the job state of the same colour. */
export const ending = (one) => (one.ended === 'completed' ? 'succeeded' : one.ended);
export const ENDED = { completed: 'succeeded', stopped: 'stopped', imported: 'starting', mixed: 'stopped' };
