// Train: the memory and time estimate of the form, measuring it with two real steps, fitting it to the
// device, and presets.

import { api, button, bytes, changed, count, duration, h, later, number, quiet, redraw, send, sureButton, t, word } from
  '../core/dom.js';
import { askAction } from '../core/form.js';

const HUES = { runtime: 9, weights: 0, adapter: 1, gradients: 6, optimizer: 7, activations: 2, logits: 5,
  workspace: 4 };

export class Preflight {
  constructor(page) {
    this.page = page;
    this.turn = 0;
    this.element = h('section.s-card.s-preflight', { testid: 'preflight' });
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
