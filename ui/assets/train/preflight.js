// Beside the Train form: the memory and time estimate, measuring it with two real steps and fitting it to the
// device; the X-ray of the first rows and what the context cuts; and presets.

import { api, button, bytes, changed, count, duration, h, later, newest, number, quiet, redraw, say, send, sureButton,
  t, text, word } from '../core/dom.js';
import { askAction } from '../core/form.js';
import { drawn } from '../data/xray.js';

const HUES = { runtime: 9, weights: 0, adapter: 1, gradients: 6, optimizer: 7, activations: 2, logits: 5,
  workspace: 4 };

export class Preflight {
  constructor(page) {
    this.page = page;
    this.turn = 0;
    this.element = h('section.s-card.s-preflight', { testid: 'preflight' }, h('header', h('h2', t`Memory and time`)),
      quiet('…'));
  }

  /** Look at the form as it was judged; null while it has an error. */
  take(form) {
    clearTimeout(this.timer);
    this.turn++;
    if (!form) return this.show(null);
    if (form.set.join() !== this.set?.join()) this.seconds = null;
    this.set = form.set;
    this.timer = setTimeout(() => this.look(), 200);
    return undefined;
  }

  async look() {
    const turn = ++this.turn;
    const found = await api('/api/train/estimate', { set: this.set }).catch(() => null);
    if (turn !== this.turn) return;
    const { sizes, values } = this.page.found;
    if (found?.looked && !sizes.lora && changed(this, `${values['model.path']}@${values['model.revision']}`)) {
      return this.page.changed(); // its sizes may be known now; asked once, as they may stay unknown
    }
    this.show(found);
  }

  /** Hidden while the form has an error, which is shown beside its field. */
  show(found) {
    this.element.hidden = !found || Boolean(found.error);
    if (this.element.hidden) { this.page.know(null); return; }
    this.seconds = found.seconds;
    this.time = duration(found.seconds);
    if (!found.measured) this.page.know(found);
    const measure = button(t`Measure`, this.page.asked((set) => this.measure(set)), 's-tool',
      { title: t`Take two real steps on the longest batch` });
    if (found.unknown) {
      redraw(this.element, h('header', h('h2', t`Memory and time`), measure),
        quiet(found.unknown));
      return;
    }
    const whole = Math.max(found.total_bytes, found.device_bytes);
    const parts = Object.entries(found.parts).filter(([, size]) => size > 0);
    const colour = (part) => `background: var(--s-run-${HUES[part] ?? 9})`;
    redraw(this.element, ...[
      h('header', h('h2', t`Memory and time`), measure,
        !found.fits && button(t`Make it fit`, this.page.asked((set) => this.fit(set)), 's-primary')),
      h('p.s-forecast', h('b', bytes(found.total_bytes)), ` ${free(found)}`, h('span', ' · '),
        h('b', duration(found.seconds)), t` for ${count(found.total_steps)} steps`,
        h('span.s-quiet', ' · ', found.measured ? t`measured, base in ${found.dtype}` : found.like
          ? t`at the pace of ${found.like}, base in ${found.dtype}` : t`estimated, base in ${found.dtype}`)),
      found.processes > 1 && quiet(t`Below: one process of ${found.processes}, ${bytes(found.process_bytes)}.
        The time assumes that ${found.processes} are ${(found.efficiency * found.processes).toFixed(1)} times
        as fast as one.`),
      !found.fits && h('p.s-error', { role: 'alert' },
        t`This does not fit. “Make it fit” keeps the result: smaller batches, accumulated to the same size.`),
      h('div.s-parts', { role: 'img', label: t`Memory by part` }, parts.map(([part, size]) =>
        h('i', { style: `${colour(part)}; width: ${(100 * size) / whole}%`,
          title: `${found.titles[part]}: ${bytes(size)}` }))),
      h('ul.s-legend', parts.map(([part, size]) => h('li', h('i', { style: colour(part) }),
        found.titles[part], h('span', bytes(size)))))].filter(Boolean));
  }

  async measure(set) {
    clearTimeout(this.timer);
    await this.look(); // later, it would end the measurement
    const started = await send('/api/do/preflight', { set, measure: true });
    if (!started) return;
    const turn = ++this.turn;
    const words = quiet({ role: 'status' }, t`Measuring …`);
    this.element.append(words);
    while (turn === this.turn && this.element.isConnected) {
      await later(700);
      const found = await send(`/api/outcome/${started.id}`);
      if (!found || turn !== this.turn) return;
      if (found.outcome.parts) { this.show(found.outcome); return; }
      words.textContent = found.error?.text || t`Measuring: ${found.phase || word(found.state)}`;
      if (['failed', 'cancelled', 'paused'].includes(found.state)) return;
    }
  }

  async fit(set) {
    const { changes } = await api('/api/do/preflight', { set, fit: true });
    await this.page.open({ values: changes });
  }
}

export class Presets {
  constructor(page) {
    this.page = page;
    this.element = h('div.s-presets');
    send('/api/do/presets.list', {}).then((found) => found && this.show(found));
  }

  show(found) {
    const { page } = this;
    redraw(this.element, h('span.s-quiet', t`Presets`), ...found.map((preset) =>
      h('span.s-preset', button(preset.name, () => page.open({ preset: preset.name }), '',
        { title: about(preset) }),
      preset.own && sureButton('×', t`Forget?`, async () => {
        this.show(await api('/api/do/presets.forget', { name: preset.name }));
      }, 's-tool'))),
    button(t`Save as …`, page.asked((set) => askAction('presets.save', { title: t`Save a preset`,
      fixed: { set }, done: (saved) => this.show(saved) })), 's-tool'));
  }
}

function free(found) {
  const names = found.device.replaceAll(',', ', ');
  if (found.processes === 1) return t`of ${bytes(found.device_bytes)} free on ${names}`;
  if (found.on_device > 1) return t`for ${found.processes} processes, of ${bytes(found.device_bytes)} free on ${names}`;
  return t`on each device, of ${bytes(found.device_bytes)} free on ${names}`;
}

const about = (preset) => [preset.about, ...Object.entries(preset.values).map(([field, value]) =>
  `${field} ${typeof value === 'number' ? number(value) : value}`)].join('\n');

/** The X-ray beside the form: the first rows as the trainer sees them. */
export class FirstRows {
  constructor(page) {
    this.page = page;
    this.warning = h('div', { role: 'status', testid: 'cut' });
    this.words = quiet('');
    this.marked = h('span', t`trained`);
    this.list = h('div.s-first-rows', { testid: 'first-rows' });
    this.element = h('section.s-card', { hidden: true }, h('header.s-row-between',
      h('h2', t`The first rows`), h('span.s-xray-legend', [['trained', this.marked],
        ['masked', t`read`], ['truncated', t`cut`]].map(([state, words]) => h('span',
        h('i.s-token', { 'data-state': state }, 'Aa'), words)))), this.warning, this.words, this.list);
  }

  async take(found) {
    this.element.hidden = !found;
    const first = await newest(this, found && api('/api/train/rows', { set: found.set })
      .catch((failed) => ({ error: { text: failed.message } })));
    if (!first) return;
    const { rows = [], error, unknown = error?.text ?? '' } = first;
    const { 'train.loss': loss = 'sft' } = found.values;
    const what = { sft: t`trained`, grpo: t`to compare with` }[loss] ?? t`in the loss`;
    text(this.marked, what);
    say(this.words, unknown);
    const paired = ({ side }) => side === 'chosen' || side === 'rejected'; // has a line of its own on each
    redraw(this.list, ...rows.map((row) => h('div', row.side === 'rejected' && !row.problem ? null
      : quiet(row.problem ? t`Row ${row.row} is dropped: ${row.problem}` : paired(row) ? t`Row ${row.row}`
        : t`Row ${row.row}${row.side && `, ${word(row.side)}`}: ${count(row.num_tokens)} tokens, ${
          count(row.num_trained)} ${what}${row.num_truncated ? t`, ${count(row.num_truncated)} cut` : ''}`),
    h('div.s-tokens', { tabindex: '0', role: 'group', label: t`Row ${row.row} as tokens` },
      drawn([row]), row.tokens.length < row.num_tokens && '…'))));
  }

  /** Say which share of all rows is cut, and what helps. */
  cut(found) {
    if (!found?.rows) return redraw(this.warning);
    const ends = found.rows - found.start, share = Math.max(1, Math.round((100 * found.rows) / found.of));
    const most = Math.min(found.longest, found.context);
    return redraw(this.warning, h('p.s-warning',
      t`${share} % of the rows (${count(found.rows)} of ${count(found.of)}) are cut at ${count(found.limit)} tokens: ${
        [ends && t`${count(ends)} lose the end of their answer`, found.start
          && t`${count(found.start)} the beginning of their question`].filter(Boolean).join(', ')}. `,
      most > found.limit ? button(t`Train up to ${count(most)} tokens`, () => {
        this.page.settings.get('data.max_length').fill(most);
        this.page.changed();
      }, 's-tool') : t`The longest has ${count(found.longest)}, and this model reads ${count(found.context)}: take a
        model with a longer context, or split the rows.`));
  }
}
