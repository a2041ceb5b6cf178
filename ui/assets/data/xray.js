// The X-ray: rows exactly as the trainer sees them, token by token; and the bar that selects the model
// through which report and X-ray see a dataset.

import { api, button, count, dots, h, newest, query, quiet, remember, t, text, word } from '../core/dom.js';
import { labelled, select } from '../core/form.js';

const PICKS = { first: t`First`, longest: t`Longest`, shortest: t`Shortest`, random: t`Random` };
const STATES = { trained: t`trained`, masked: t`read, not trained`, truncated: t`cut off`, special: t`special`,
  lost: t`left out by the template`, shared: t`equal on both sides` };

export class XRay {
  constructor(page) {
    this.page = page;
    this.row = Number(query().get('row')) || 1;
    this.number = h('input', { type: 'number', min: 1, value: String(this.row), label: t`Row number`,
      testid: 'xray-row', onchange: () => this.jump(Number(this.number.value) || 1) });
    this.summary = quiet({ role: 'status', testid: 'xray-summary' });
    this.tokens = h('div.s-tokens', { testid: 'tokens' });
    this.decoded = h('pre.s-decoded');
    this.other = h('div.s-tokens', { testid: 'tokens-rejected' });
    const turn = (label, by, name) => button(label, () => this.jump(this.row + by), '', { label: name });
    this.element = h('div.s-stack',
      h('div.s-xray-bar',
        h('div.s-segments', Object.entries(PICKS).map(([pick, label]) =>
          h('button', { testid: `pick-${pick}`, onclick: () => this.load({ pick }) }, label))),
        turn('‹', -1, t`Previous row`), h('label', t`Row `, this.number, t` of ${count(page.found.rows)}`),
        turn('›', 1, t`Next row`),
        h('span.s-xray-legend', Object.entries(STATES).map(([state, words]) =>
          (state === 'shared' && !['preference', 'scored'].includes(page.found.mapping.format) ? null
            : h('span', h('i.s-token', {
              'data-state': { special: 'masked', lost: 'truncated', shared: 'masked' }[state] ?? state,
              'data-special': state === 'special', 'data-shared': state === 'shared' }, 'Aa'), words))))),
      this.summary,
      h('div.s-xray', this.tokens, this.decoded, this.other));
    this.jump(this.row);
  }

  jump(row) {
    return this.load({ row: Math.min(Math.max(1, row), Math.max(1, this.page.found.rows)) });
  }

  async load(what) {
    const seed = what.pick === 'random' ? { seed: Math.floor(Math.random() * 1e9) } : {};
    try {
      const found = await newest(this, api(`/api/data/${this.page.found.name}/xray?${
        this.page.lens.query({ ...what, ...seed })}`));
      if (!found) return;
      if (!found.id) return this.show(found.rows);
      this.note(t`The dataset is large: a queued job counts its tokens once. The list above shows its progress.`);
      this.page.await(found, () => this.load(what), (words) => this.note(words));
    } catch (error) { this.note(error.message); }
  }

  note(words) {
    text(this.summary, words);
    this.sides([]);
    text(this.decoded, '');
  }

  sides(views, other = []) {
    this.tokens.replaceChildren(...drawn(views));
    this.other.replaceChildren(...drawn(other));
    this.other.hidden = !other.length;
    this.decoded.hidden = other.length > 0;
  }

  /** Show a row: one view, or one per answer where each is trained with its own rendering. */
  show(views) {
    const [row] = views;
    this.row = this.number.value = row.row;
    remember({ row: row.row === 1 ? null : row.row });
    const mine = views.filter((view) => view.row === row.row);
    const rejected = mine.filter(({ side }) => side === 'rejected');
    if (row.problem) {
      this.note(t`Line ${count(row.line)} is dropped: ${row.problem}`);
      return this.tokens.replaceChildren(...row.lost.map(lost));
    }
    text(this.summary, t`line ${count(row.line)} · ${rejected.length
      ? t`${count(row.shared)} tokens are equal on both sides`
      : `${row.side && t`judged as ${word(row.side)} · `}${figures(row)}`}${row.num_parts > 1
      ? t` · turn 1 of ${row.num_parts}` : ''}`);
    this.sides(mine.filter(({ side }) => side !== 'rejected'), rejected);
    return text(this.decoded, row.text);
  }
}

const figures = (row) => dots(t`${count(row.num_tokens)} tokens`, t`${count(row.num_trained)} trained
  (${row.num_tokens ? Math.round((100 * row.num_trained) / row.num_tokens) : 0}\u202f%)`,
t`${count(row.num_truncated)} cut off`, row.tokens.length < row.num_tokens
  && t`the first ${count(row.tokens.length)} are shown`);

export const drawn = (views) => views.flatMap((view) => [
  ['chosen', 'rejected'].includes(view.side) && view.part === 1
    && h('div.s-quiet', { 'data-side': view.side }, `${word(view.side)} · ${view.problem || figures(view)}`),
  view.part > 1 && h('div.s-quiet', t`Turn ${view.part} of ${view.num_parts}`),
  ...view.tokens.flatMap((one, index) => [
    ...view.lost.filter((part) => part.before === index).map(lost),
    ...view.weights.filter((one) => one.start === index).map(weight), token(one, index < view.shared)]),
  ...view.lost.filter((part) => part.before >= view.tokens.length).map(lost),
]).filter(Boolean);

const token = ({ id, state, special, text: words }, shared) => h('span.s-token', {
  'data-state': state, 'data-special': special, 'data-shared': shared,
  title: `${id} · ${STATES[state]}${special ? t` · special` : ''}` },
words === '' ? '·' : words.replaceAll('\n', '↵\n')); // line ends and parts of a character are tokens too

const weight = ({ weight: value }) => h('sup.s-quiet', { title: t`Loss weight ${value}` }, `×${value}`);

const lost = ({ message, kind, text: words }) => h('del.s-token', { 'data-state': 'truncated',
  title: `${STATES.lost}: ${kind}${message ? t` of message ${message}` : ''}` }, words);

/** The model and the settings through which a dataset is seen; the address holds them. */
export class Lens {
  constructor(fields, models, onchange) {
    const all = [{ name: 'model', title: t`Model`, default: 'starter', choices: [] }, ...fields];
    this.values = Object.fromEntries(all.map((one) => [one.name, query().get(one.name) ?? String(one.default)]));
    const list = h('datalist', { id: 'lens-models' }, models.map(([label, value]) => h('option', { value }, label)));
    this.element = h('div.s-lens', list,
      all.map(({ name, title, choices, default: usual, ...bounds }) => {
      const set = (value) => {
        this.values[name] = value.trim() || String(usual);
        remember({ [name]: this.values[name] === String(usual) ? null : this.values[name] });
        onchange();
      };
      return labelled(title, choices.length ? select(choices, this.values[name], set)
        : h('input', { value: this.values[name], testid: `lens-${name}`, list: name === 'model' && 'lens-models',
          type: bounds.type === 'integer' && 'number', min: bounds.ge, onchange: (e) => set(e.target.value) }));
    }));
  }

  query(more = {}) {
    return new URLSearchParams({ ...this.values, ...more }).toString();
  }
}
